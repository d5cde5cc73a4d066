from __future__ import annotations

import csv
import json
import shutil
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tensorboardX.proto.event_pb2 import Event

from replay_service import records
from replay_service.disk_space import wait_for_space
from replay_service.keys import Keys
from replay_service.process import StopSignal
from replay_service.records import (
    CURSORS_FILE,
    EVALUATIONS_FILE,
    SUMMARY_FILE,
    Recorder,
    RunIdentity,
    make_summary,
    unaccounted_steps,
    write_json,
)
from replay_service.redis_client import RedisClient
from replay_service.reports import ActorLedger, Evaluation, LearnerReport, Reports
from replay_service.run_state import Phase, RunState, RunStateStore
from replay_service.waits import WaitSeconds
from tests.conftest import PATIENCE_S, WaitUntil
from tests.damaging_client import DamagingClient
from tests.faults import fill, small_disk

IDENTITY = RunIdentity(run_id="night", env="pen", preset="published", seed=7)
EVALUATION = Evaluation(
    policy_version=1,
    env_steps=0,
    grad_steps=20,
    success_any=0.25,
    success_final=None,
    success_fraction=0.125,
    episode_return=-50.5,
    episode_length=20.0,
    episodes=4,
    seconds=1.5,
    unix_seconds=1_700_000_000.0,
)
STATE = RunState.from_hash(
    {
        b"phase": b"online",
        b"env_steps": b"120",
        b"grad_steps": b"150",
        b"online_grad_steps": b"50",
        b"initial_env_steps": b"20",
        b"policy_version": b"9",
        b"episodes": b"6",
        b"seed_steps": b"1000",
        b"duplicate_steps": b"5",
        b"quarantined_steps": b"10",
        b"quarantined_messages": b"2",
        b"actor_restarts": b"3",
        b"learner_restarts": b"4",
        b"evaluations_missed": b"6",
    }
)


def ledger(actor_id: int, *, stored: int, quarantined: int = 0) -> ActorLedger:
    return ActorLedger(
        actor_id=actor_id,
        epoch=1,
        next_sequence=1,
        stored_steps=stored,
        duplicate_steps=0,
        quarantined_steps=quarantined,
        lease=0,
        episodes=0,
        successes=0,
        restarts=0,
        policy_version=1,
        last_return=None,
        last_seen_ms=0,
    )


@pytest.fixture
def reports(redis_client: RedisClient, keys: Keys) -> Reports:
    return Reports(redis_client, keys)


@pytest.fixture
def open_recorder(tmp_path: Path, reports: Reports) -> Iterator[Callable[[], Recorder]]:
    """Open a recorder on the run's folder; the one opened before it is closed, as at a restart of the service."""
    opened: list[Recorder] = []

    def open_one() -> Recorder:
        for earlier in opened:
            earlier.close()
        opened.append(Recorder(tmp_path, reports, IDENTITY))
        return opened[-1]

    yield open_one
    for recorder in opened:
        recorder.close()


def read_summary(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
    return summary


def read_rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / EVALUATIONS_FILE).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def take_events(run_dir: Path, axis: str) -> list[tuple[str, int]]:
    """(tag, step) of every scalar in the event files, which are removed; their names change but once a second.

    A record is length, checksum, event, checksum.
    """
    found = []
    for path in sorted((run_dir / "tensorboard" / axis).iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            event = Event.FromString(data[position + 12 : position + 12 + length])
            position += 16 + length
            found += [(value.tag, event.step) for value in event.summary.value]
        path.unlink()
    return found


class TestSummary:
    def test_it_has_the_runs_counters_under_their_documented_names(self) -> None:
        ledgers = [ledger(0, stored=70, quarantined=10), ledger(1, stored=50)]
        summary = make_summary(
            IDENTITY, "running", STATE, ledgers, [EVALUATION], wall_seconds=12.345, rates=(3.14159, 2.0)
        )
        assert summary == {
            "status": "running",
            "run_id": "night",
            "env": "pen",
            "preset": "published",
            "seed": 7,
            "phase": "online",
            "env_steps": 120,
            "grad_steps": 150,
            "episodes": 6,
            "policy_version": 9,
            "wall_seconds": 12.3,
            "env_steps_per_second": 3.14,
            "grad_steps_per_second": 2.0,
            "utd_ratio": 0.5,
            "seed_steps": 1000,
            "duplicates_refused": 5,
            "quarantined": 10,
            "quarantined_messages": 2,
            "unaccounted_steps": 0,
            "actor_restarts": 3,
            "learner_restarts": 4,
            "evaluations_missed": 6,
            "evaluations": [
                {
                    "policy_version": 1,
                    "env_steps": 0,
                    "grad_steps": 20,
                    "success_any": 0.25,
                    "success_final": None,
                    "success_fraction": 0.125,
                    "episode_return": -50.5,
                    "episodes": 4,
                }
            ],
        }

    def test_a_run_without_online_steps_has_no_ratio(self) -> None:
        offline = replace(STATE, env_steps=0, online_grad_steps=0)
        assert make_summary(IDENTITY, "running", offline, [], [], wall_seconds=0, rates=(0, 0))["utd_ratio"] is None

    def test_evaluations_are_not_copied_whole_at_each_tick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        copied = []

        def copy(value: Any) -> dict[str, Any]:
            copied.append(type(value))
            return asdict(value)

        monkeypatch.setattr(records, "asdict", copy)
        make_summary(IDENTITY, "running", STATE, [], [EVALUATION] * 3, wall_seconds=0, rates=(0, 0))
        assert Evaluation not in copied

    @pytest.mark.parametrize(
        ("ledgers", "unaccounted"),
        [
            ([ledger(0, stored=120, quarantined=10)], 0),
            ([ledger(0, stored=119, quarantined=10)], 1),
            ([ledger(0, stored=121, quarantined=10)], 1),
            ([ledger(0, stored=121, quarantined=9)], 2),
            ([], 130),
        ],
    )
    def test_steps_that_no_ledger_explains_are_counted(self, ledgers: list[ActorLedger], unaccounted: int) -> None:
        assert unaccounted_steps(STATE, ledgers) == unaccounted


class TestWriteJson:
    def test_whoever_reads_meanwhile_sees_the_whole_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "values.json"
        write_json(path, {"a": 1})
        with path.open(encoding="utf-8") as reader:
            write_json(path, {"a": 2, "b": 3})
            assert json.load(reader) == {"a": 1}
        assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2, "b": 3}
        assert [entry.name for entry in tmp_path.iterdir()] == ["values.json"]

    def test_values_that_cannot_be_written_leave_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "values.json"
        write_json(path, {"a": 1})
        with pytest.raises(TypeError):
            write_json(path, {"a": object()})
        assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}


def test_keeping_records_loads_neither_torch_nor_ray_nor_gymnasium(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
import replay_service.__main__
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.records import Recorder, RunIdentity
from replay_service.reports import Reports
reports = Reports(connect(RedisEndpoint("redis://127.0.0.1:1")), Keys("nobody"))
Recorder(Path(sys.argv[1]), reports, RunIdentity("r", "pen", "published", 0)).close()
print([name for name in ("torch", "ray", "gymnasium", "mujoco") if name in sys.modules])
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert loaded == "[]\n"


class TestRecorder:
    def test_every_evaluation_becomes_a_row_with_the_runs_name(
        self, open_recorder: Callable[[], Recorder], reports: Reports, state: RunStateStore, tmp_path: Path
    ) -> None:
        recorder = open_recorder()
        recorder.update(state.read(), [])
        assert not (tmp_path / EVALUATIONS_FILE).exists()
        for version in (1, 2):
            reports.add_evaluation(replace(EVALUATION, policy_version=version), request_id=f"{version}-0")
            recorder.update(state.read(), [])
        first, second = read_rows(tmp_path)
        assert (first["env"], first["preset"], first["seed"]) == ("pen", "published", "7")
        assert (first["policy_version"], second["policy_version"]) == ("1", "2")
        assert (first["success_any"], first["success_final"], first["episode_return"]) == ("0.25", "", "-50.5")
        assert [e["policy_version"] for e in read_summary(tmp_path)["evaluations"]] == [1, 2]

    def test_the_summary_follows_state_and_status(
        self, open_recorder: Callable[[], Recorder], state: RunStateStore, tmp_path: Path
    ) -> None:
        recorder = open_recorder()
        recorder.update(state.read(), [])
        assert (read_summary(tmp_path)["status"], read_summary(tmp_path)["phase"]) == ("running", "seeding")
        state.set_phase(Phase.FINISHED)
        recorder.update(state.read(), [], status="finished")
        assert (read_summary(tmp_path)["status"], read_summary(tmp_path)["phase"]) == ("finished", "finished")

    def test_after_a_restart_the_files_are_rebuilt_from_redis(
        self, open_recorder: Callable[[], Recorder], reports: Reports, state: RunStateStore, tmp_path: Path
    ) -> None:
        reports.add_evaluation(EVALUATION, request_id="1-0")
        open_recorder().update(state.read(), [])
        for name in (EVALUATIONS_FILE, SUMMARY_FILE):
            (tmp_path / name).unlink()
        reports.add_evaluation(replace(EVALUATION, policy_version=2), request_id="2-0")
        resumed = open_recorder()
        resumed.skip_recorded_reports()
        resumed.update(state.read(), [])
        assert [row["policy_version"] for row in read_rows(tmp_path)] == ["1", "2"]
        assert [e["policy_version"] for e in read_summary(tmp_path)["evaluations"]] == [1, 2]

    def test_the_time_of_earlier_sessions_is_kept(
        self, open_recorder: Callable[[], Recorder], state: RunStateStore, tmp_path: Path
    ) -> None:
        write_json(tmp_path / SUMMARY_FILE, {"wall_seconds": 1000.0})
        open_recorder().update(state.read(), [])
        assert read_summary(tmp_path)["wall_seconds"] >= 1000.0

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"wall_seconds": null}', '{"wall_seconds": "long"}'])
    def test_a_damaged_summary_of_an_earlier_session_is_replaced(
        self, open_recorder: Callable[[], Recorder], state: RunStateStore, tmp_path: Path, damage: str
    ) -> None:
        (tmp_path / SUMMARY_FILE).write_text(damage)
        open_recorder().update(state.read(), [])
        assert read_summary(tmp_path)["phase"] == "seeding"

    def test_each_report_is_written_to_the_event_files_once_over_all_sessions(
        self, open_recorder: Callable[[], Recorder], reports: Reports, state: RunStateStore, tmp_path: Path
    ) -> None:
        def report(version: int) -> None:
            judged = replace(EVALUATION, policy_version=version, env_steps=10 * version, grad_steps=100 * version)
            reports.add_evaluation(judged, request_id=f"{version}-0")
            metrics = {"policy_loss": 0.5}
            reports.add_learner_report(LearnerReport(100 * version, 10 * version, 1_700_000_000.0, metrics))

        recorder = open_recorder()
        for version in (1, 2):
            report(version)
            recorder.update(state.read(), [])
        recorder.close()
        axes = ("by_env_steps", "by_grad_steps")
        events = {axis: Counter(take_events(tmp_path, axis)) for axis in axes}
        resumed = open_recorder()
        resumed.skip_recorded_reports()
        report(3)
        resumed.update(state.read(), [])
        resumed.close()
        for axis in axes:
            events[axis].update(take_events(tmp_path, axis))
        for version in (1, 2, 3):
            for axis, step in (("by_env_steps", 10 * version), ("by_grad_steps", 100 * version)):
                assert events[axis]["learner/policy_loss", step] == 1
                assert events[axis]["eval/success_any", step] == 1
                assert events[axis]["eval/success_final", step] == 0
                assert events[axis]["eval/episode_return", step] == 1

    @pytest.mark.parametrize("damage", [None, "", "[]", '{"reports": "x", "evaluations": "0-0"}'])
    def test_what_came_while_nobody_recorded_is_written_too(
        self, open_recorder: Callable[[], Recorder], reports: Reports, state: RunStateStore, tmp_path: Path,
        damage: str | None,
    ) -> None:  # fmt: skip
        def report(version: int) -> None:
            judged = replace(EVALUATION, policy_version=version, env_steps=10 * version, grad_steps=100 * version)
            reports.add_evaluation(judged, request_id=f"{version}-0")
            reports.add_learner_report(
                LearnerReport(100 * version, 10 * version, 1_700_000_000.0, {"policy_loss": 0.5})
            )

        recorder = open_recorder()
        report(1)
        recorder.update(state.read(), [])
        recorder.close()
        report(2)
        if damage is not None:
            (tmp_path / CURSORS_FILE).write_text(damage)
        resumed = open_recorder()
        resumed.skip_recorded_reports()
        report(3)
        resumed.update(state.read(), [])
        resumed.close()
        assert [row["policy_version"] for row in read_rows(tmp_path)] == ["1", "2", "3"]
        events = Counter(take_events(tmp_path, "by_env_steps"))
        for name in ("learner/policy_loss", "eval/success_any"):
            # With a damaged note nobody knows what is missing, and nothing is written twice.
            expected = [1, int(damage is None), 1]
            assert [events[name, step] for step in (10, 20, 30)] == expected

    def test_events_that_were_cleared_away_do_not_end_the_recording(
        self, open_recorder: Callable[[], Recorder], reports: Reports, state: RunStateStore, tmp_path: Path
    ) -> None:
        recorder = open_recorder()
        recorder.update(state.read(), [])
        shutil.rmtree(tmp_path / "tensorboard")
        reports.add_evaluation(EVALUATION, request_id="1-0")
        recorder.update(state.read(), [])
        assert [row["policy_version"] for row in read_rows(tmp_path)] == ["1"]

    def test_an_evaluation_that_redis_forgot_and_was_told_again_counts_once(
        self, open_recorder: Callable[[], Recorder], reports: Reports, state: RunStateStore, tmp_path: Path,
        redis_client: DamagingClient, keys: Keys,
    ) -> None:  # fmt: skip
        recorder = open_recorder()
        for version in (1, 2):
            judged = replace(EVALUATION, policy_version=version, grad_steps=100 * version)
            reports.add_evaluation(judged, request_id=f"{version}-0")
        recorder.update(state.read(), [])
        # As a Redis that was killed before it wrote its file. Trimmed, not deleted: a stream made anew within the
        # millisecond would give out the same ids again, which no Redis that had to start first can do.
        redis_client.xtrim(keys.evaluations, maxlen=0, approximate=False)
        for version in (1, 2):
            judged = replace(EVALUATION, policy_version=version, grad_steps=100 * version, seconds=9.0)
            reports.add_evaluation(judged, request_id=f"{version}-0")
        recorder.update(state.read(), [])
        recorder.close()
        assert [(row["policy_version"], row["seconds"]) for row in read_rows(tmp_path)] == [("1", "9.0"), ("2", "9.0")]
        assert [e["policy_version"] for e in read_summary(tmp_path)["evaluations"]] == [1, 2]
        events = Counter(take_events(tmp_path, "by_grad_steps"))
        assert [events["eval/episode_return", 100 * version] for version in (1, 2)] == [1, 1]

    def test_a_disk_that_was_full_for_a_while_has_every_point_once(
        self, reports: Reports, state: RunStateStore, tmp_path: Path, wait_until: WaitUntil
    ) -> None:
        registry = CollectorRegistry()
        waits = WaitSeconds.register(registry, "replay")
        labels = {"role": "replay", "reason": "disk"}
        written = 40
        with small_disk(tmp_path / "disk") as disk:
            recorder = Recorder(disk, reports, IDENTITY)
            recorder.update(state.read(), [])
            filler = fill(disk)
            for number in range(1, written + 1):
                metrics = {f"metric_{index}": 0.5 for index in range(20)}
                reports.add_learner_report(LearnerReport(100 * number, 10 * number, 1_700_000_000.0 + number, metrics))

            def update() -> None:
                wait_for_space(lambda: recorder.update(state.read(), []), "replay", stop=StopSignal(), waits=waits)

            thread = threading.Thread(target=update, daemon=True)
            thread.start()
            wait_until(
                lambda: (registry.get_sample_value("awac_wait_seconds_total", labels) or 0.0) > 0.0,
                "the wait to be counted",
            )
            filler.unlink()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
            recorder.close()
            events = Counter(take_events(disk, "by_grad_steps"))
            assert read_summary(disk)["status"] == "running"
        for number in range(1, written + 1):
            assert all(events[f"learner/metric_{index}", 100 * number] == 1 for index in range(20))
