"""docs/cluster.md, executed: three machines made of namespaces, a run, a machine cut off, the first machine killed."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.launching import SMALL_PEN
from tests.system.machines import Machine, machines, why_not

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
RUN = "runs/pen-cluster"
SMALL_NODE = " --num-cpus=2 --object-store-memory=80000000"
SMALL_JOB = " " + " ".join(SMALL_PEN[4:]) + " --utd-ratio 0.1"
ENDLESS = " --num-env-steps 5000000"
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""Ray takes half a minute to give a silent node up."""


def steps_of_the_page() -> dict[int, list[str]]:
    """The commands of each numbered section, in order."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        int(section[0]): re.findall(r"^ {4}(\S.*)$", section, flags=re.MULTILINE)
        for section in sections
        if section[:1].isdigit()
    }


STEPS = steps_of_the_page()


def test_the_page_has_the_commands_that_are_executed_here() -> None:
    assert [len(STEPS[step]) for step in range(1, 7)] == [0, 3, 3, 4, 0, 3]
    first, other = STEPS[3][0].split(), STEPS[3][1].split()
    assert set(first) - set(other) >= {"--head", "--port=6379"}
    assert set(STEPS[4][0].split()) < set(STEPS[6][1].split())


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Machine]]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    (export,) = (line for line in STEPS[2] if line.startswith("export "))
    name, _, value = export.removeprefix("export ").partition("=")
    try:
        with machines(3, tmp_path, {name: value, **QUICK_TO_NOTICE}) as made:
            yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")


def join(machine: Machine) -> None:
    start_ray(machine, STEPS[3][1].replace("10.0.0.2", machine.address))


def start_ray(machine: Machine, command: str) -> None:
    """Start Ray, which gives up after half a minute by itself: on a machine with much else to do, once more."""
    try:
        machine.run(command + SMALL_NODE)
    except AssertionError:
        machine.run("ray stop --force")
        machine.run(command + SMALL_NODE)


def until(condition: Callable[[], bool], what: str, timeout_s: float = 150.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.5)


def pools(machine: Machine) -> list[int]:
    return machine.processes("-m actors actor")


class Cluster:
    """The launcher's machine, seen from the test."""

    def __init__(self, first: Machine, tmp_path: Path) -> None:
        self.first = first
        self.output = tmp_path / "launcher.out"

    def up(self, command: str) -> None:
        self.process = self.first.start(command, self.output)

    @property
    def text(self) -> str:
        logs = sorted((self.first.disk / RUN / "logs").glob("*.log"))
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
            found = json.loads((self.first.disk / RUN / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        return int(found["env_steps"])

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            assert self.process.poll() is None, f"launcher ended with {self.process.poll()}\n{self.text}"
            return condition()

        try:
            until(holds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from error

    def goes_on(self, more: int = 400) -> None:
        goal = self.steps() + more
        self.until(lambda: self.steps() >= goal, f"{more} more steps")


def targets(machine: Machine) -> dict[str, str]:
    """Process -> metrics address, as any machine can read it from the service discovery."""
    found = json.loads(machine.run("curl -sf http://10.0.0.1:6391/targets"))
    return {group["labels"]["process"]: group["targets"][0] for group in found}


def test_the_page_from_zero_to_a_run_that_survives_its_machines(cluster: list[Machine], tmp_path: Path) -> None:
    first, second, third = cluster

    # Step 2: the token. A machine without it does not get in.
    for command in STEPS[2][1:]:
        first.run(command)
    token = first.disk / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0
    for other in (second, third):
        (other.disk / ".ray").mkdir()
        (other.disk / ".ray" / "auth_token").write_bytes(token.read_bytes())
        (other.disk / ".ray" / "auth_token").chmod(0o600)

    # Step 3: Ray.
    start_ray(first, STEPS[3][0])
    join(second)
    join(third)
    until(lambda: "/6.0 CPU" in first.run(STEPS[3][2]), "Ray to show all nodes, which it does every few seconds")

    # Too much for the cluster: told at once.
    asked = STEPS[4][0].replace("--actors 4", "--actors 5").replace(RUN, "runs/too-large")
    refused = subprocess.run(
        first.words(asked + SMALL_JOB), env=first.environment, capture_output=True, text=True, timeout=180
    )
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "ask for 7 CPUs in all" in refused.stderr
    assert "No room for " in refused.stderr

    # Step 4: the run.
    run = Cluster(first, tmp_path)
    run.up(STEPS[4][0] + SMALL_JOB + ENDLESS)
    run.until(lambda: run.steps() >= 500, "500 steps")
    for other in (second, third):
        run.until(lambda other=other: len(pools(other)) == 3, "a fork server and two actors on each other machine")  # type: ignore[misc]
    assert not pools(first)
    assert first.processes("-m learner")
    addresses = targets(third)
    assert {address.partition(":")[0] for name, address in addresses.items() if name.startswith("actor-")} == {
        "10.0.0.2", "10.0.0.3"
    }  # fmt: skip
    for process, address in addresses.items():
        assert "awac_" in second.run(f"curl -sf http://{address}/metrics"), process
    for command in STEPS[4][1:]:
        first.run(command)
    for other in (second, third):  # each has its own part of the run directory, and no secret in it
        assert (other.disk / RUN / "config.toml").read_bytes() == (first.disk / RUN / "config.toml").read_bytes()
        assert (other.disk / RUN / "logs").is_dir()
        assert not (other.disk / RUN / "redis").exists()

    # Step 5: a machine is cut off, and comes back.
    said = run.said
    third.pull_cable()
    run.until(lambda: run.says("waiting for room", said), "the pool to be missed")
    run.goes_on()
    third.plug_in()
    until(lambda: not third.processes("raylet/raylet"), "Ray on the machine that was cut off to end")
    until(lambda: not pools(third), "its actors to end")
    join(third)
    run.until(lambda: run.says("every program has found room", said), "the pool to be placed again")
    run.until(lambda: len(pools(third)) == 3, "its actors to be there again")
    run.goes_on()

    # Step 6: the first machine dies, and comes back.
    first.power_off()
    run.process.wait(60)
    first.boot()
    start_ray(first, STEPS[3][0])
    for other in (second, third):
        other.run(STEPS[6][0])
        join(other)
    budget = run.steps() + 1500
    run.up(STEPS[6][1] + SMALL_JOB + f" --num-env-steps {budget}")
    assert run.process.wait(600) == 0, run.text
    summary = json.loads((first.disk / RUN / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["env_steps"]) == ("finished", budget)
    assert "resume proved" in (first.disk / RUN / "logs" / "learner.log").read_text()
    assert "sound" in first.run(STEPS[6][2]).splitlines()[-1]
