"""The compose file: valid for Compose itself, closed, and its very commands carry a run to its end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replay_service.access import Role
from replay_service.config_file import load_run_config
from replay_service.credentials import write_credentials
from tests.deploy import compose_file, images
from tests.deploy.compose_file import FILE, FOLDER, Machine, compose
from tests.ports import free_port
from tests.system.launching import SMALL_PEN

ROLES = ("replay", "learner", "actor", "evaluator")
LONG_RUNNING = ("redis", *ROLES, "prometheus", "grafana")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return compose_file.read()


class TestTheFile:
    @pytest.mark.parametrize("more", [[], ["-f", FOLDER / "compose.gpu.yaml"]], ids=["cpu", "gpu"])
    def test_compose_accepts_it(self, more: list[str | Path]) -> None:
        done = compose("-f", FILE, *more, "config", "--quiet")
        assert done.returncode == 0, done.stderr

    def test_a_misspelt_key_would_be_found(self, tmp_path: Path) -> None:
        (tmp_path / "compose.yaml").write_text(FILE.read_text().replace("stop_grace_period", "stop_grace_perod", 1))
        done = compose("-f", tmp_path / "compose.yaml", "config", "--quiet")
        assert done.returncode != 0
        assert "stop_grace_perod" in done.stderr

    def test_the_gpu_goes_to_the_learner_alone(self) -> None:
        services = compose_file.read(FOLDER / "compose.gpu.yaml")["services"]
        with_device = [name for name, spec in services.items() if "devices" in str(spec.get("deploy"))]
        assert with_device == ["learner"]
        assert services["learner"]["command"][-2:] == ["--device", "cuda"]

    def test_actors_can_be_scaled(self, document: dict[str, Any]) -> None:
        actor = document["services"]["actor"]
        assert not {"container_name", "ports", "hostname", "volumes"} & set(actor)
        assert actor["command"][-2:] == ["--indices", "claim"]

    @pytest.mark.parametrize("service", LONG_RUNNING)
    def test_every_service_is_checked_restarted_and_pinned(self, document: dict[str, Any], service: str) -> None:
        spec = document["services"][service]
        assert spec["healthcheck"]["test"][0] == "CMD"
        assert spec["restart"].startswith("on-failure" if service in ROLES else "unless-stopped")
        assert re.fullmatch(r"awac-[a-z]+|[\w/]+:v?\d+\.\d+\.\d+(-\w+)?", spec["image"]), spec["image"]

    @pytest.mark.parametrize("service", [*ROLES, "tools"])
    def test_our_containers_can_change_nothing_but_their_volume(self, document: dict[str, Any], service: str) -> None:
        spec = document["services"][service]
        assert spec["read_only"] is True
        assert spec["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in spec["security_opt"]

    @pytest.mark.parametrize("role", [role.value for role in Role])
    def test_every_role_has_its_own_user_and_password_alone(self, document: dict[str, Any], role: str) -> None:
        spec = document["services"][role]
        assert spec["environment"]["AWAC_REDIS_URL"] == f"redis://awac-{role}@redis:6379"
        assert [item["source"] for item in spec["secrets"]] == [f"{role}.password"]
        assert spec["environment"]["AWAC_REDIS_PASSWORD_FILE"] == spec["secrets"][0]["target"]

    def test_no_secret_stands_in_the_file(self, document: dict[str, Any]) -> None:
        for spec in document["services"].values():
            for name, value in spec.get("environment", {}).items():
                if "PASSWORD" in name:
                    assert name.endswith("_FILE"), name
                    assert value.startswith("/run/secrets/"), value
        assert all(set(item) <= {"name", "file"} for item in document["secrets"].values())
        ignored = (images.ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
        assert "secrets/" in ignored

    def test_only_pages_are_published_and_only_here(self, document: dict[str, Any]) -> None:
        published = {
            name: [(port["host_ip"], port["target"]) for port in spec["ports"]]
            for name, spec in document["services"].items()
            if "ports" in spec
        }
        assert published == {"prometheus": [("127.0.0.1", 9090)], "grafana": [("127.0.0.1", 3000)]}

    def test_redis_is_on_a_network_without_a_way_out(self, document: dict[str, Any]) -> None:
        assert list(document["services"]["redis"]["networks"]) == ["data"]
        assert document["networks"]["data"]["internal"] is True
        assert {n for n, s in document["services"].items() if "data" in s["networks"]} == {"redis", *ROLES, "tools"}

    def test_everybody_waits_for_what_it_needs(self, document: dict[str, Any]) -> None:
        needs = {name: set(spec.get("depends_on", {})) for name, spec in document["services"].items()}
        assert needs["replay"] == {"redis"}
        assert needs["learner"] == needs["actor"] == needs["evaluator"] == {"replay"}
        for spec in document["services"].values():
            assert all(item["condition"] == "service_healthy" for item in spec.get("depends_on", {}).values())

    def test_its_configuration_is_what_its_first_lines_make(self) -> None:
        text = (FOLDER / "config.toml").read_text(encoding="utf-8")
        found = re.search(r"^#\s+launcher (up --dry-run .*)$", text, flags=re.MULTILINE)
        assert found is not None
        done = subprocess.run([sys.executable, "-m", "launcher", *found[1].split()], capture_output=True, text=True)
        assert tomllib.loads(text) == tomllib.loads(done.stdout)
        run = load_run_config(FOLDER / "config.toml")
        assert (run.metrics_host, run.discovery_port, run.redis_url) == ("0.0.0.0", 9464, "")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """The services of the file on this machine, with a small run in place of the file's own."""
    for program in ("redis-server", "redis-cli"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on the PATH")
    ports = {name: str(free_port()) for name in ("redis", "discovery", "prometheus")}
    config = tmp_path / "config.toml"
    options = ("--num-env-steps", "1200", "--run-id", "pen-0", "--discovery-port", ports["discovery"])
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "up", "--dry-run", *SMALL_PEN, *options],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config.write_text(done.stdout)
    secrets = tmp_path / "secrets"
    write_credentials(secrets, "pen-0")
    document = compose_file.read(environment={"AWAC_CONFIG": str(config)})
    sources = {name: secrets / Path(item["file"]).name for name, item in document["secrets"].items()}
    replacements = {
        "redis:6379": f"127.0.0.1:{ports['redis']}",
        "replay:9464": f"127.0.0.1:{ports['discovery']}",
        "0.0.0.0:9090": f"127.0.0.1:{ports['prometheus']}",
        "127.0.0.1:9090": f"127.0.0.1:{ports['prometheus']}",
        "port 6379": f"port {ports['redis']}",
        "bind 0.0.0.0": "bind 127.0.0.1",
    }
    made = Machine(document, tmp_path, replacements, sources)
    for name, item in document["configs"].items():
        sources[name] = tmp_path / "configs" / {"prometheus": "prometheus.yml"}.get(name, Path(item["file"]).name)
    for name, item in document["configs"].items():
        sources[name].parent.mkdir(exist_ok=True)
        service = name if name in document["services"] else "redis"
        sources[name].write_text(made.here(service, Path(item["file"]).read_text(encoding="utf-8")))
    # Within a container the file is mounted into the run directory.
    (made.mounts("replay")["/var/lib/awac/run"] / "config.toml").symlink_to(sources["run"])
    yield made
    made.kill_all()


def ask_prometheus(machine: Machine, query: str) -> list[dict[str, Any]]:
    address = machine.here("prometheus", "http://127.0.0.1:9090")
    with urllib.request.urlopen(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_its_commands_carry_a_run_to_its_end(machine: Machine) -> None:
    """Each service's command, variables, secrets and health check from the file, with its image's packages alone."""
    redis_port = machine.here("redis", "redis:6379").rpartition(":")[2]
    machine.document["services"]["redis"]["environment"]["AWAC_HEALTH_OPTIONS"] = f"-p {redis_port}"
    machine.start("redis")
    machine.wait_until_healthy("redis")
    names = {"replay": "replay", "learner": "learner", "actor-a": "actor", "actor-b": "actor", "evaluator": "evaluator"}
    machine.metrics_ports = {name: str(free_port()) for name in names}
    machine.start("replay")
    machine.wait_until_healthy("replay")
    for name, service in names.items():
        if service != "replay":
            machine.start(service, name)
    for name, service in names.items():
        if service != "learner":  # the learner of so small a run may have ended by now
            machine.wait_until_healthy(service, name)
    if shutil.which("prometheus"):
        machine.start("prometheus")
        deadline = time.monotonic() + 60
        roles: set[str] = set()
        while roles != {"replay", "actor", "evaluator"} and time.monotonic() < deadline:
            time.sleep(1)
            try:
                roles = {item["metric"]["role"] for item in ask_prometheus(machine, 'up{job="awac"} == 1')} - {
                    "learner"
                }
            except OSError:
                continue
        assert roles == {"replay", "actor", "evaluator"}, machine.said("prometheus")
        machine.stop("prometheus")
    assert machine.processes.pop("learner").wait(300) == 0, machine.said("learner")
    for name in ("actor-a", "actor-b", "evaluator", "replay"):
        assert machine.stop(name) == 0, machine.said(name)
    run = machine.mounts("replay")["/var/lib/awac/run"]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["unaccounted_steps"] == 0
    assert (summary["status"], summary["phase"], summary["env_steps"]) == ("finished", "finished", 1200)
    examined = machine.run("tools")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert examined.stdout.rstrip().endswith("sound")
    assert machine.stop("redis") == 0
    password = (machine.sources["actor.password"]).read_text(encoding="utf-8")
    assert not any(password in machine.said(name) for name in (*names, "redis"))
