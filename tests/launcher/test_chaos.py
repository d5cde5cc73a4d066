"""What a crash drill may kill, how often, and what it says; the drills themselves are in tests/system/test_chaos.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from actors.config import ActorConfig
from launcher.chaos import check_restart_budget, line, parse_duration
from launcher.drill import Audit, Drill, Reading, find_target
from launcher.experiment import LauncherConfig
from replay_service.errors import ConfigError, RunDirectoryError
from replay_service.process_identity import ProcessIdentity
from replay_service.reports import ActorLedger
from replay_service.run_state import RunState

LEDGER = ActorLedger(0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, 0)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as started:
        yield started
        started.kill()


def reading(**processes: ProcessIdentity) -> Reading:
    named = {name.replace("_", "-"): process for name, process in processes.items()}
    actors = [int(name.partition("-")[2]) for name in named if name.startswith("actor-")]
    return Reading(RunState.from_hash({}), {i: replace(LEDGER, actor_id=i) for i in actors}, named, {})


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("1.5m", 90), ("2h", 7200), ("7", 7), (" 5 s ", 5)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_duration("--every", text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0s", "-5s", "5d", "s"])
def test_what_is_no_time_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--every: expected a time like 30s"):
        parse_duration("--every", text)


def test_drills_that_a_run_would_give_up_on_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"11 kills within 600 s.*--actor\.max-restarts"):
        check_restart_budget("actor", 60.0, None, ActorConfig(max_restarts=10))
    with pytest.raises(ConfigError, match=r"--launcher\.max-restarts"):
        check_restart_budget("learner", 30.0, 11, LauncherConfig(max_restarts=10))
    check_restart_budget("learner", 30.0, 10, LauncherConfig(max_restarts=10))
    check_restart_budget("actor", 61.0, None, ActorConfig(max_restarts=10))
    check_restart_budget("redis", 1.0, None, LauncherConfig(max_restarts=0))


class TestFindTarget:
    def test_actors_take_turns(self, process: subprocess.Popen[bytes]) -> None:
        here = ProcessIdentity.of(process.pid)
        run = reading(actor_0=here, actor_3=here)
        assert [find_target("actor", run, n, redis_url="").name for n in range(3)] == ["actor-0", "actor-3", "actor-0"]

    def test_a_process_that_only_has_the_same_number_is_left_alone(self, process: subprocess.Popen[bytes]) -> None:
        former = replace(ProcessIdentity.of(process.pid), started_ticks=1)
        with pytest.raises(RunDirectoryError, match="is not running now"):
            find_target("learner", reading(learner=former), 0, redis_url="")
        assert not former.kill()
        assert process.poll() is None

    def test_a_process_of_another_machine_is_named(self) -> None:
        away = replace(ProcessIdentity.of(os.getpid()), host="elsewhere")
        with pytest.raises(RunDirectoryError, match="runs on elsewhere"):
            find_target("evaluator", reading(evaluator=away), 0, redis_url="")

    def test_a_role_that_never_registered_is_named(self) -> None:
        with pytest.raises(RunDirectoryError, match="learner has not registered yet"):
            find_target("learner", reading(), 0, redis_url="")

    def test_the_users_own_redis_is_never_killed(self) -> None:
        own = ProcessIdentity.own()
        with pytest.raises(ConfigError, match="not the run's own server"):
            find_target("redis", reading(redis=own), 0, redis_url="redis://db:6379")

    def test_a_ray_worker_is_two_above_an_actor(self, process: subprocess.Popen[bytes]) -> None:
        # Here: this test, above it whoever started it.
        actor, pool = ProcessIdentity.of(process.pid), ProcessIdentity.own()
        worker = pool.parent()
        assert worker is not None
        if worker.pid <= 1:
            pytest.skip("started by the first process")
        found = find_target("ray-worker", reading(actor_0=actor), 0, redis_url="")
        assert (found.process, found.actors) == (worker, (0,))


def test_a_process_is_killed_for_real_and_once(process: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.of(process.pid)
    assert ProcessIdentity.from_json(identity.to_json().encode()) == identity
    assert identity.kill()
    assert process.wait(30) == -9
    assert not identity.is_alive
    assert not identity.kill()


DRILL = Drill(1, "learner", "learner", 42, 0.0, 3.2, "gradient step 9", Audit(), 0.5, None)


@pytest.mark.parametrize(
    ("changes", "passed", "words"),
    [
        ({}, True, "ok   drill 1: learner works again after 3.2 s (gradient step 9)"),
        ({"back_after_s": None, "shown_by": "still no sign of learner"}, False, "NOT BACK: still no sign"),
        ({"back_after_s": None, "shown_by": "x", "ended_as": "finished"}, True, "learner x; steps lost 0"),
        ({"back_after_s": None, "shown_by": "x", "ended_as": "failed"}, False, "NOT BACK: x"),
        ({"back_after_s": None, "shown_by": "x", "ended_as": "running"}, False, "NOT BACK: x"),
        ({"ended_as": "stopped", "audit": Audit(unaccounted_steps=1)}, False, "unaccounted 1"),
        ({"audit": Audit(lost_steps=3)}, False, "steps lost 3"),
        ({"audit": Audit(doubled_steps=4)}, False, "doubled 4"),
        ({"audit": Audit(bad_findings=("seed data: x",))}, False, "; seed data: x"),
    ],
)
def test_a_drill_in_a_line(changes: dict[str, object], passed: bool, words: str) -> None:
    drill = replace(DRILL, **changes)  # type: ignore[arg-type]
    assert drill.passed is passed
    assert words in line(drill)
    assert line(drill).startswith("ok " if passed else "BAD")
    assert drill.to_json()["passed"] is passed
