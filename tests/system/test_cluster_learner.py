"""A learner on another machine than the launcher's: machines that join late, and the learner's that dies."""

from __future__ import annotations

import json
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
    refused,
    rejoin,
    share_token,
    start_ray,
)
from tests.system.launching import PATIENCE_S, wait_until
from tests.system.machines import Machine

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1200)]

RESUME = STEPS[6][1].replace("--actors 4", "--actors 1")
UP = STEPS[4][0].replace("--actors 4", "--actors 1")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Machine]]:
    with cluster_of(3, tmp_path) as made:
        yield made


def learners(machine: Machine) -> list[int]:
    return machine.processes("-m learner")


def test_a_learner_goes_on_where_its_checkpoints_are(cluster: list[Machine], tmp_path: Path) -> None:
    first, second, third = cluster
    share_token(first, [second, third])
    # The launcher's machine has room for the replay service and the evaluator alone.
    start_ray(first, STEPS[3][0], cpus=1)

    # The cluster cannot hold the run yet: with the option, it waits for machines that join for the first time.
    run = ClusterRun(first, tmp_path)
    run.up(UP + SMALL_JOB + ENDLESS + " --launcher.wait-for-nodes")
    run.until(lambda: run.says("waiting for room", 0), "the programs without room to be named")
    join(second)
    run.until(lambda: bool(learners(second)), "the learner on the machine that joined")
    said = run.said
    join(third)
    run.until(lambda: len(pools(second)) + len(pools(third)) == 2, "a fork server and its actor")
    run.until(lambda: run.steps() >= 500, "500 steps")
    assert not learners(first)
    assert not learners(third)
    checkpoints = second.disk / RUN / "checkpoints"
    run.until(lambda: any(checkpoints.glob("step-*")), "a checkpoint on the learner's machine")
    assert not (first.disk / RUN / "checkpoints").exists()

    # Its machine has only a part of the run, from which it cannot be told anything.
    assert "this machine's part of a run" in refused(second, f"launcher down {RUN}")

    # The learner's machine dies. There is room on the third, and no checkpoint: it waits for the second.
    said = run.said
    second.power_off()
    words = "the learner's checkpoints are on 10.0.0.2"
    run.until(lambda: run.says(words, said), "the run to say for what it waits")
    assert not learners(third)
    wait_until(lambda: "/3.0 CPU" in first.run(STEPS[3][2]), "Ray to count it no more")
    second.boot()
    rejoin(second)
    run.until(lambda: bool(learners(second)), "the learner to be back")
    log = second.disk / RUN / "logs" / "learner.log"
    run.until(lambda: "resume proved" in log.read_text(), "the learner to go on from its checkpoint")
    run.goes_on()  # only now: the actors may play on ahead of a learner that is still starting

    # Stopped in order, and resumed while the learner's machine is away: told at once, and nothing is begun anew.
    first.run(f"launcher down {RUN}")
    assert run.process.wait(PATIENCE_S) == 0
    second.power_off()
    wait_until(lambda: "/3.0 CPU" in first.run(STEPS[3][2]), "Ray to count it no more")
    assert "the checkpoints of this run are on 10.0.0.2" in refused(
        first, RESUME + SMALL_JOB + " --launcher.no-wait-for-nodes"
    )
    second.boot()
    rejoin(second)
    budget = run.steps() + 1000
    run.up(RESUME + SMALL_JOB + f" --num-env-steps {budget}")
    assert run.process.wait(600) == 0, run.text
    summary = json.loads((first.disk / RUN / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["env_steps"]) == ("finished", budget)
    assert "sound" in first.run(STEPS[6][2]).splitlines()[-1]


def test_on_a_shared_disk_the_learner_moves_to_another_machine(tmp_path: Path) -> None:
    with cluster_of(3, tmp_path, shared_disk=True) as (first, second, third):
        share_token(first, [second, third])
        start_ray(first, STEPS[3][0], cpus=1)
        join(second)
        run = ClusterRun(first, tmp_path)
        run.up(UP + SMALL_JOB + ENDLESS)
        run.until(lambda: bool(learners(second)), "the learner on the machine with room")
        join(third)
        run.until(lambda: any((first.disk / RUN / "checkpoints").glob("step-*")), "a checkpoint")
        run.goes_on(200)
        second.power_off()
        run.until(lambda: bool(learners(third)), "the learner on the other machine")
        log = first.disk / RUN / "logs" / "learner.log"
        run.until(lambda: "resume proved" in log.read_text(), "the learner to go on from its checkpoint")
        run.goes_on()
        first.run(f"launcher down {RUN}")
        assert run.process.wait(PATIENCE_S) == 0
        assert "sound" in first.run(STEPS[6][2]).splitlines()[-1]
