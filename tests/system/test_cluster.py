"""docs/cluster.md, executed: three machines made of namespaces, a run, a machine cut off, the first machine killed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.cluster import (
    ENDLESS,
    RUN,
    SMALL_JOB,
    STEPS,
    ClusterRun,
    cluster_of,
    join,
    pools,
    share_token,
    start_ray,
)
from tests.system.launching import wait_until
from tests.system.machines import Machine

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_the_page_has_the_commands_that_are_executed_here() -> None:
    assert [len(STEPS[step]) for step in range(1, 7)] == [0, 3, 3, 4, 0, 3]
    first, other = STEPS[3][0].split(), STEPS[3][1].split()
    assert set(first) - set(other) >= {"--head", "--port=6379"}
    assert set(STEPS[4][0].split()) < set(STEPS[6][1].split())


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Machine]]:
    with cluster_of(3, tmp_path) as made:
        yield made


def targets(machine: Machine) -> dict[str, str]:
    """Process -> metrics address, as any machine can read it from the service discovery."""
    found = json.loads(machine.run("curl -sf http://10.0.0.1:6391/targets"))
    return {group["labels"]["process"]: group["targets"][0] for group in found}


def hosts_of_actors(machine: Machine) -> list[str]:
    addresses = targets(machine)
    return sorted(address.partition(":")[0] for name, address in addresses.items() if name.startswith("actor-"))


def test_the_page_from_zero_to_a_run_that_survives_its_machines(cluster: list[Machine], tmp_path: Path) -> None:
    first, second, third = cluster

    # Step 2: the token. A machine without it does not get in.
    token = share_token(first, [second, third])
    assert token.stat().st_mode & 0o077 == 0

    # Step 3: Ray.
    start_ray(first, STEPS[3][0])
    join(second)
    join(third)
    wait_until(lambda: "/6.0 CPU" in first.run(STEPS[3][2]), "Ray to show all nodes, which it does every few seconds")

    # Too much for the cluster: told at once.
    asked = STEPS[4][0].replace("--actors 4", "--actors 5").replace(RUN, "runs/too-large")
    refused = subprocess.run(
        first.words(asked + SMALL_JOB), env=first.environment, capture_output=True, text=True, timeout=180
    )
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "ask for 7 CPUs in all" in refused.stderr
    assert "No room for " in refused.stderr
    assert not (first.disk / "runs" / "too-large").exists()  # the next try may have its name

    # Step 4: the run.
    run = ClusterRun(first, tmp_path)
    run.up(STEPS[4][0] + SMALL_JOB + ENDLESS)
    run.until(lambda: run.steps() >= 500, "500 steps")
    for other in (second, third):
        run.until(lambda other=other: len(pools(other)) == 3, "a fork server and two actors on each other machine")  # type: ignore[misc]
    assert not pools(first)
    assert first.processes("-m learner")
    hosts = ["10.0.0.2", "10.0.0.2", "10.0.0.3", "10.0.0.3"]
    run.until(lambda: hosts_of_actors(third) == hosts, "the discovery to name all actors, on the two other machines")
    for process, address in targets(third).items():
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
    wait_until(lambda: not third.processes("raylet/raylet"), "Ray on the machine that was cut off to end")
    wait_until(lambda: not pools(third), "its actors to end")
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
