"""What the Dockerfile says about each image, and an environment that holds what the image would hold."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "images"
PACKAGES = ("replay_service", "actors", "learner", "launcher")
TARGETS = ("actor", "replay", "learner", "tools", "ray")


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, after those of the stage that it is made from."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for item in DockerfileParser(path=str(FOLDER)).structure:
        instruction, value = item["instruction"], item["value"]
        if instruction == "FROM":
            origin, _, name = value.partition(" AS ")
            found[name] = [*found.get(origin, []), ("FROM", origin)]
        elif instruction != "COMMENT" and name:
            found[name].append((instruction, value))
    return found


def requirement_file(target: str) -> Path:
    """The file with the requirements of an image, as its own pip command names it."""
    commands = " ".join(value for instruction, value in stages()[f"build-{target}"] if instruction == "RUN")
    (name,) = re.findall(r"pip install -r requirements/(\S+)", commands)
    return FOLDER / "requirements" / str(name)


def requirements(target: str) -> list[Requirement]:
    """What the pip commands of an image ask for by name."""
    lines = requirement_file(target).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    commands = " ".join(value for instruction, value in stages()[f"build-{target}"] if instruction == "RUN")
    return [*found, *([Requirement("torch")] if re.search(r"-c constraints\.txt torch\b", commands) else [])]


def closure(wanted: list[Requirement]) -> set[str]:
    """Names of the distributions that pip would install, by the metadata of those installed here."""
    found: set[str] = set()
    pending = [(canonicalize_name(item.name), frozenset(item.extras)) for item in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        name, extras = pending.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # CUDA's packages, say, are not on a machine without a GPU
        found.add(name)
        for text in requires:
            item = Requirement(text)
            if item.marker is None or any(item.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                pending.append((canonicalize_name(item.name), frozenset(item.extras)))
    return found


def make_environment(target: str, folder: Path) -> Path:
    """A virtual environment with the image's distributions and the project's packages; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in closure(requirements(target)):
        for file in distribution(name).files or []:
            top = file.parts[0]
            source, link = Path(str(distribution(name).locate_file(top))), site / top
            if top not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(source)
    for package in PACKAGES:
        (site / package).symlink_to(ROOT / package)
    (folder / "bin" / "launcher").write_text(
        f"#!{folder}/bin/python\nimport sys\nfrom launcher.cli import main\nsys.exit(main())\n"
    )
    (folder / "bin" / "launcher").chmod(0o755)
    return folder / "bin" / "python"


def environment_of(target: str) -> dict[str, str]:
    """The variables that an image sets."""
    found: dict[str, str] = {}
    for instruction, value in stages()[target]:
        if instruction == "ENV":
            found |= dict(word.partition("=")[::2] for word in shlex.split(value))
    return found
