"""What a crash drill may kill, how often, what it finds in damaged data, and what it says.

Drills on whole runs are in tests/system/test_chaos.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import redis

from actors.config import ActorConfig
from launcher import chaos, cli, drill
from launcher.chaos import check_restart_budget, line, parse_duration
from launcher.drill import (
    Audit,
    Drill,
    LiveRun,
    NothingLeftToKill,
    NothingToKillNow,
    Origin,
    Reading,
    RunEnded,
    Witness,
    audit,
    count_again,
    find_target,
    read_end,
    witnesses,
)
from launcher.experiment import ExperimentConfig, LauncherConfig
from launcher.run_directory import RunDirectory
from replay_service.config import RunConfig
from replay_service.connection import RedisEndpoint
from replay_service.errors import ConfigError, RunDirectoryError
from replay_service.keys import Keys
from replay_service.process_identity import ProcessIdentity
from replay_service.redis_client import RedisClient
from replay_service.reports import ActorLedger
from replay_service.run_state import Phase, RunState, RunStateStore
from replay_service.seeding import seed
from replay_service.trajectory_stream import BadEntry, Quarantine, TrajectoryWriter

if TYPE_CHECKING:
    from tests.conftest import MakeTrajectory

LEDGER = ActorLedger(0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, 0)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as started:
        yield started
        started.kill()


HostedActor = Callable[[str, str], tuple[ProcessIdentity, ProcessIdentity]]


@pytest.fixture
def hosted_actor() -> Iterator[HostedActor]:
    """Starts a process of a title, below it a pool with a variable in its environment, below that an actor.

    Returns the first and the last of them.
    """
    started: list[subprocess.Popen[str]] = []

    def start(title: str, variable: str) -> tuple[ProcessIdentity, ProcessIdentity]:
        script = f"{variable} sh -c 'sleep 600 & echo $!; wait; true'; true"
        above = subprocess.Popen(
            [title, "-c", script], executable="/bin/sh", stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(above)
        assert above.stdout is not None
        return ProcessIdentity.of(above.pid), ProcessIdentity.of(int(above.stdout.readline()))

    yield start
    for above in started:
        os.killpg(above.pid, signal.SIGKILL)
        above.communicate()


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

    def test_a_ray_worker_is_two_above_an_actor(self, hosted_actor: HostedActor) -> None:
        worker, actor = hosted_actor("ray::RoleHost", "AWAC_PARENT_PID=$$")
        found = find_target("ray-worker", reading(actor_0=actor), 0, redis_url="")
        assert (found.process, found.actors) == (worker, (0,))

    @pytest.mark.parametrize(
        ("title", "told"),
        [("tmux", ""), ("tmux", "AWAC_PARENT_PID=$$"), ("ray::RoleHost", ""), ("ray::RoleHost", "AWAC_PARENT_PID=1")],
        ids=["a shell", "one that was told so", "another's worker", "a worker that started another pool"],
    )
    def test_what_else_is_two_above_an_actor_is_never_killed(
        self, title: str, told: str, hosted_actor: HostedActor
    ) -> None:
        shell, actor = hosted_actor(title, told)
        with pytest.raises(RunDirectoryError, match=rf"process id {shell.pid}, .{title} -c .*started by hand") as found:
            find_target("ray-worker", reading(actor_0=actor), 0, redis_url="")
        assert not isinstance(found.value, NothingToKillNow)  # waiting would not make it one


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


STEPS = (4, 5, 6, 7, 8)
"""Of the messages that the drill below has seen acknowledged: no two alike, so that a count names the lost one."""


@pytest.fixture
def stored(redis_client: RedisClient, keys: Keys, run_config: RunConfig, writer: TrajectoryWriter, tmp_path: Path,
           make_trajectory: MakeTrajectory) -> LiveRun:  # fmt: skip
    """A sound run with a message of each number of steps."""
    seed(redis_client, keys, None)
    for sequence, steps in enumerate(STEPS):
        writer.append(make_trajectory(sequence, steps=steps), want_steps=0)
    return LiveRun(RunDirectory(tmp_path), run_config, redis_client)


def entry(client: RedisClient, keys: Keys, place: int) -> tuple[str, dict[str, bytes]]:
    """Id and fields of one entry of the online stream."""
    raw_id, fields = client.xrange(keys.online)[place]
    return raw_id.decode(), {name.decode(): value for name, value in fields.items()}


def remove(client: RedisClient, keys: Keys, place: int) -> None:
    client.xdel(keys.online, entry(client, keys, place)[0])  # type: ignore[attr-defined]  # the project never does this


def seen_by(run: LiveRun) -> dict[Origin, Witness]:
    return witnesses(run.client(), run.keys)


class TestCountAgain:
    def test_every_message_is_a_witness_and_a_sound_run_has_an_empty_audit(self, stored: LiveRun) -> None:
        seen = seen_by(stored)
        assert seen == {(0, 1, n): Witness(sum(STEPS[:n]), steps) for n, steps in enumerate(STEPS)}
        assert count_again(stored, seen) == Audit()

    @pytest.mark.parametrize("place", [1, 2, 3])
    def test_a_message_that_vanished_between_others_is_lost_whoever_saw_it(
        self, place: int, stored: LiveRun, keys: Keys
    ) -> None:
        seen = seen_by(stored)
        remove(stored.client(), keys, place)
        assert count_again(stored, seen) == Audit(lost_steps=STEPS[place])
        assert count_again(stored, {}) == Audit(lost_steps=STEPS[place])

    def test_the_newest_one_is_missed_by_its_witness_alone(self, stored: LiveRun, keys: Keys) -> None:
        seen = seen_by(stored)
        remove(stored.client(), keys, -1)
        assert count_again(stored, seen) == Audit(lost_steps=STEPS[-1])
        assert count_again(stored, {}) == Audit()  # nothing lies behind it that could show the gap

    def test_a_message_that_is_there_twice_is_doubled(self, stored: LiveRun, keys: Keys) -> None:
        client, seen = stored.client(), seen_by(stored)
        _id, fields = entry(client, keys, -1)
        client.xadd(keys.online, {**fields, "f": b"%d" % sum(STEPS)})
        client.hincrby(keys.counters, "appended_steps", STEPS[-1])
        assert count_again(stored, seen) == Audit(doubled_steps=STEPS[-1])

    @pytest.mark.parametrize("amount", [9, -9])
    def test_steps_that_no_actor_s_account_knows_are_unaccounted(
        self, amount: int, stored: LiveRun, keys: Keys
    ) -> None:
        seen = seen_by(stored)
        stored.client().hincrby(keys.counters, "env_steps", amount)
        assert count_again(stored, seen) == Audit(unaccounted_steps=9)

    def test_what_was_put_into_quarantine_is_not_lost(self, stored: LiveRun, keys: Keys) -> None:
        client, seen = stored.client(), seen_by(stored)
        Quarantine(client, keys).put(BadEntry(entry(client, keys, 2)[0], 0, "of this test"))
        assert count_again(stored, seen) == Audit()
        remove(client, keys, 2)  # beside it: the quarantine explains its own steps and no others
        assert count_again(stored, seen) == Audit(lost_steps=STEPS[3])

    def test_what_was_evicted_since_is_not_lost(
        self, stored: LiveRun, keys: Keys, writer: TrajectoryWriter, make_trajectory: MakeTrajectory
    ) -> None:
        seen = seen_by(stored)
        for sequence in range(len(STEPS), len(STEPS) + 8):  # 80 steps more, of 100 that are kept
            writer.append(make_trajectory(sequence, steps=10), want_steps=0)
        assert int(entry(stored.client(), keys, 0)[1]["f"]) == sum(STEPS[:3])
        assert count_again(stored, seen) == Audit()


class TestAudit:
    def test_what_comes_back_in_time_is_no_loss(
        self, stored: LiveRun, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client, seen = stored.client(), seen_by(stored)
        raw_id, fields = entry(client, keys, -1)
        remove(client, keys, -1)
        # The stream takes no second message of the same id: this one comes as its actor would send it, behind the last.
        later = f"{int(raw_id.partition('-')[0]) + 1}-0"
        come_back = SimpleNamespace(
            monotonic=time.monotonic, sleep=lambda _s: client.xadd(keys.online, fields, id=later)
        )
        monkeypatch.setattr(drill, "time", come_back)
        with stored.directory.held():
            assert audit(stored, seen, time.monotonic() + 60.0) == Audit()

    def test_a_loss_stands_when_the_time_is_over(self, stored: LiveRun, keys: Keys) -> None:
        seen = seen_by(stored)
        remove(stored.client(), keys, 2)
        assert audit(stored, seen, time.monotonic()) == Audit(lost_steps=STEPS[2])

    def test_what_only_the_doctor_sees_is_a_bad_finding(self, stored: LiveRun, keys: Keys) -> None:
        stored.client().hincrby(keys.counters, "retained_steps", 3)
        (finding,) = audit(stored, seen_by(stored), time.monotonic()).bad_findings
        assert "transitions in the stream: 30 counted, 33 recorded" in finding

    def test_a_run_that_ended_is_not_counted_again_and_again(self, stored: LiveRun, keys: Keys) -> None:
        remove(stored.client(), keys, 2)
        with pytest.raises(RunEnded):
            audit(stored, {}, time.monotonic() + 60.0)


def test_of_a_run_that_has_ended_the_summary_counts(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    ended, found = read_end(directory)
    assert (ended, found.sound) == ("failed", False)
    assert f"{directory.summary}: FileNotFoundError" in found.bad_findings[0]
    directory.summary.write_text(json.dumps({"status": "stopped", "unaccounted_steps": 12}), encoding="utf-8")
    assert read_end(directory) == ("stopped", Audit(unaccounted_steps=12))


@pytest.fixture
def run_up(stored: LiveRun, redis_endpoint: RedisEndpoint) -> Iterator[RunDirectory]:
    """The same as a run that is up, for the command line."""
    directory = stored.directory
    directory.write_config(ExperimentConfig(run=stored.config).to_toml())
    directory.connection.parent.mkdir()
    redis_endpoint.save(directory.connection)
    with directory.held():
        yield directory


@pytest.mark.parametrize(
    ("comes_back", "loses", "code"),
    [(True, False, 0), (True, True, 1), (False, False, 1)],
    ids=["mended", "a message lost", "not back"],
)
def test_the_exit_code_says_whether_a_drill_went_well(
    comes_back: bool, loses: bool, code: int, stored: LiveRun, state: RunStateStore, keys: Keys,
    run_up: RunDirectory, process: subprocess.Popen[bytes], capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    state.publish_process("evaluator", ProcessIdentity.of(process.pid))  # whom a drill takes for it

    def crash() -> None:
        process.wait()
        if loses:
            remove(stored.client(), keys, 2)
        if comes_back:
            state.publish_process("evaluator", ProcessIdentity.own())

    crashing = threading.Thread(target=crash)
    crashing.start()
    try:
        # What cannot succeed is waited for to the end of the limit, what can has all the time that it may take.
        limit = "60s" if code == 0 else "5s"
        assert cli.main(["chaos", str(run_up.path), "--kill", "evaluator", "--json", "--limit", limit]) == code
    finally:
        process.kill()
        crashing.join()
    (said,) = (json.loads(text) for text in capfd.readouterr().out.splitlines())
    assert said["passed"] is (code == 0)
    assert (said["back_after_s"] is not None) is comes_back
    assert said["audit"]["lost_steps"] == (STEPS[2] if loses else 0)


BAD = replace(DRILL, back_after_s=None, shown_by="still no sign of learner")
AWAY = NothingToKillNow("--kill learner: learner is not running now; try again")
OVER = NothingLeftToKill("the run has finished: there is nothing left to disturb")
ELSEWHERE = RunDirectoryError("--kill learner: learner runs on elsewhere")

Turns = Callable[[list[Drill | Exception]], list[int]]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Puts in the place of drills what the next ones come to; the last one is what all others come to.

    Returns the list of their numbers, which grows.
    """

    def take(outcomes: list[Drill | Exception]) -> list[int]:
        numbers: list[int] = []

        def execute(_run: LiveRun, _role: str, number: int, **_options: object) -> Drill:
            outcome = outcomes[min(len(numbers), len(outcomes) - 1)]
            numbers.append(number)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(chaos, "execute", execute)
        return numbers

    return take


class TestSeries:
    @staticmethod
    def code(directory: RunDirectory, *words: str, limit: str = "0.5s") -> int:
        series = ("--kill", "learner", "--every", "0.1s", "--times", "3", "--limit", limit)
        return cli.main(["chaos", str(directory.path), *series, *words])

    @pytest.mark.parametrize(("first", "code"), [(DRILL, 0), (BAD, 1)], ids=["passed", "failed"])
    def test_the_end_of_the_run_is_the_end_of_the_series_with_its_verdict(
        self, first: Drill, code: int, stored: LiveRun, state: RunStateStore, run_up: RunDirectory,
        monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        def execute(*words: Any, **options: Any) -> Drill:
            if words[2]:
                return drill.execute(*words, **options)
            state.set_phase(Phase.FINISHED)
            return first

        monkeypatch.setattr(chaos, "execute", execute)
        assert self.code(run_up) == code
        assert capfd.readouterr().err == f"{run_up.path} has finished: there is nothing left to disturb\n"

    @pytest.mark.parametrize(
        ("outcomes", "code", "numbers"),
        [
            ([DRILL, AWAY, AWAY, DRILL], 0, [0, 1, 1, 1, 2]),
            ([BAD, AWAY, AWAY, DRILL], 1, [0, 1, 1, 1, 2]),
            ([BAD, ELSEWHERE], 1, [0, 1]),
            ([DRILL, ELSEWHERE], 2, [0, 1]),
            ([BAD, OVER], 1, [0, 1]),
            ([AWAY], 2, [0]),
            ([OVER], 2, [0]),
        ],
    )
    def test_a_refusal_behind_the_first_drill_is_waited_out_and_hides_none_that_failed(
        self, outcomes: list[Drill | Exception], code: int, numbers: list[int], run_up: RunDirectory, turns: Turns
    ) -> None:
        taken = turns(outcomes)
        assert self.code(run_up, limit="60s") == code  # what is away comes within it, on a busy machine too
        assert taken == numbers

    def test_what_stays_away_has_failed(
        self, run_up: RunDirectory, turns: Turns, capfd: pytest.CaptureFixture[str]
    ) -> None:
        taken = turns([DRILL, AWAY])
        assert self.code(run_up, "--json") == 1
        assert set(taken) == {0, 1, 2}
        out, err = capfd.readouterr()
        missed = [json.loads(text) for text in out.splitlines()[1:]]
        assert [(drill["number"], drill["passed"]) for drill in missed] == [(2, False), (3, False)]
        assert list(missed[0]) == list(DRILL.to_json())
        assert missed[0]["back_after_s"] is missed[0]["audit"] is None
        assert missed[0]["shown_by"].startswith("nothing to kill for 0.5 s: --kill learner: ")
        assert [text[:13] for text in err.splitlines()] == ["BAD  drill 2:", "BAD  drill 3:"]
        assert "nothing to kill for 0.5 s: --kill learner: learner is not running now" in err


def test_a_redis_that_falls_silent_before_the_kill_is_one_that_does_not_answer_now(
    stored: LiveRun, state: RunStateStore, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_words: object) -> None:
        raise redis.exceptions.TimeoutError("Timeout reading from socket")

    state.publish_process("learner", ProcessIdentity.of(process.pid))
    monkeypatch.setattr(drill, "witnesses", silent)
    with stored.directory.held(), pytest.raises(NothingToKillNow, match=r"its Redis does not answer \(Timeout"):
        drill.execute(stored, "learner", 0, limit_s=1.0, say=lambda _text: None)
    assert process.poll() is None


def test_a_run_that_ends_before_the_kill_is_over(stored: LiveRun) -> None:
    with pytest.raises(NothingLeftToKill, match="is not running: start it with `launcher up`"):
        drill.execute(stored, "learner", 0, limit_s=1.0, say=lambda _text: None)
