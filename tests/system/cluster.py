"""A cluster of machines made of namespaces, started by the commands of docs/cluster.md, and a run on it."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.launching import SMALL_PEN, wait_until
from tests.system.machines import Machine, machines, why_not

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
RUN = "runs/pen-cluster"
SMALL_JOB = " " + " ".join(SMALL_PEN[4:]) + " --utd-ratio 0.1"
ENDLESS = " --num-env-steps 5000000"
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "10",
}
"""Ray gives up a node that is gone after 10 s, and one that is silent after 30 s; with less, on a machine that is busy,
also one that gets no processor for some seconds."""
NOTICED_S = 35.0
"""Longer than it takes for either."""


def steps_of_the_page() -> dict[int, list[str]]:
    """The commands of each numbered section of the page, in order."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        int(section[0]): re.findall(r"^ {4}(\S.*)$", section, flags=re.MULTILINE)
        for section in sections
        if section[:1].isdigit()
    }


STEPS = steps_of_the_page()


@contextlib.contextmanager
def cluster_of(
    count: int, folder: Path, environment: dict[str, str] | None = None, *, shared_disk: bool = False
) -> Iterator[list[Machine]]:
    """That many machines; skips where namespaces cannot be had."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    (export,) = (line for line in STEPS[2] if line.startswith("export "))
    name, _, value = export.removeprefix("export ").partition("=")
    variables = {name: value, **QUICK_TO_NOTICE, **(environment or {})}
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(machines(count, folder, variables, shared_disk=shared_disk))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield made


def share_token(first: Machine, others: list[Machine]) -> Path:
    """Step 2: make the token on the first machine and bring it to the others; returns where it is on the first."""
    for command in STEPS[2][1:]:
        first.run(command)
    token = first.disk / ".ray" / "auth_token"
    for other in others:
        if other.disk == first.disk:
            continue
        (other.disk / ".ray").mkdir()
        (other.disk / ".ray" / "auth_token").write_bytes(token.read_bytes())
        (other.disk / ".ray" / "auth_token").chmod(0o600)
    return token


def join(machine: Machine) -> None:
    """Step 3 on a machine that is not the first."""
    start_ray(machine, STEPS[3][1].replace("10.0.0.2", machine.address))


def start_ray(machine: Machine, command: str, cpus: float = 2) -> None:
    """Start Ray, which gives up after half a minute by itself: on a machine with much else to do, once more."""
    small = f"{command} --num-cpus={cpus:g} --object-store-memory=80000000"
    try:
        machine.run(small)
    except AssertionError:
        machine.run("ray stop --force")
        machine.run(small)


def rejoin(machine: Machine) -> None:
    """Step 3 on a machine that was switched off and on.

    Ray's head pauses ever longer between attempts to reach the old process: with the short deadlines above it then
    takes a new one at the same port for dead, too, and goes on counting what it had promised to that one as used. At
    another port it is a stranger.
    """
    for _attempt in range(6):
        time.sleep(5)
        port = random.randrange(6600, 9000, 2)
        command = STEPS[3][1].replace("10.0.0.2", machine.address)
        start_ray(machine, command.replace("6501", str(port)).replace("6502", str(port + 1)))
        time.sleep(NOTICED_S)
        if machine.processes("raylet/raylet"):
            return
    raise AssertionError(f"Ray does not stay up on {machine.name}")


def pools(machine: Machine) -> list[int]:
    return machine.processes("-m actors actor")


def refused(machine: Machine, command: str) -> str:
    """What a command says that ends with exit code 2."""
    done = subprocess.run(
        machine.words(command), env=machine.environment, capture_output=True, text=True, timeout=180
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


class ClusterRun:
    """A run, seen from its launcher's machine."""

    def __init__(self, first: Machine, tmp_path: Path, path: str = RUN) -> None:
        self.first = first
        self.path = path
        self.output = tmp_path / f"{Path(path).name}.out"

    def up(self, command: str) -> None:
        self.process = self.first.start(command, self.output)

    @property
    def text(self) -> str:
        logs = sorted((self.first.disk / self.path / "logs").glob("*.log"))
        ends = "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)
        return self.output.read_text(errors="replace") + ends

    def says(self, words: str, after: int) -> bool:
        """Whether the launcher has written this since its output was so long."""
        return words in self.output.read_text(errors="replace")[after:]

    @property
    def said(self) -> int:
        """Length of the launcher's output so far."""
        return len(self.output.read_text(errors="replace"))

    def steps(self) -> int:
        """Environment steps that the records show."""
        try:
            found = json.loads((self.first.disk / self.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        return int(found["env_steps"])

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            assert self.process.poll() is None, f"launcher ended with {self.process.poll()}\n{self.text}"
            return condition()

        wait_until(holds, what, pause_s=0.5, told=lambda: self.text)

    def goes_on(self, more: int = 400) -> None:
        goal = self.steps() + more
        self.until(lambda: self.steps() >= goal, f"{more} more steps")
