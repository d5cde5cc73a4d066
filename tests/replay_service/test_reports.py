from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from replay_service.experience import ExperienceSpec
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.reports import ActorLedger, Evaluation, LearnerReport, Reports
from replay_service.run_state import RunStateStore
from replay_service.trajectory_stream import EpisodeOutcome, TrajectoryWriter
from tests.damaging_client import DamagingClient

if TYPE_CHECKING:
    from tests.conftest import MakeTrajectory

EVALUATION = Evaluation(
    policy_version=3,
    env_steps=5_000,
    grad_steps=30_000,
    success_any=0.75,
    success_final=0.5,
    success_fraction=0.123456789012345,
    episode_return=-101.5,
    episode_length=200.0,
    episodes=20,
    seconds=3.25,
    unix_seconds=1_700_000_000.125,
)
REPORT = LearnerReport(grad_steps=100, env_steps=50, unix_seconds=1.5, metrics={"policy_loss": -0.1, "q_mean": 1e-30})


@pytest.fixture
def reports(state: RunStateStore, redis_client: RedisClient, keys: Keys) -> Reports:
    return Reports(redis_client, keys)


class TestEvaluations:
    def test_they_come_back_as_they_were_recorded(self, reports: Reports, state: RunStateStore) -> None:
        without_success = replace(EVALUATION, success_any=None, success_final=None, success_fraction=None)
        for number, evaluation in enumerate((EVALUATION, without_success)):
            reports.add_evaluation(evaluation, request_id=f"{number}-1")
        assert [evaluation for _, evaluation in reports.evaluations()] == [EVALUATION, without_success]
        assert state.read().evaluations_done == 2

    def test_one_that_is_repeated_for_a_lost_answer_is_recorded_once(
        self, reports: Reports, state: RunStateStore
    ) -> None:
        for _ in range(2):
            reports.add_evaluation(EVALUATION, request_id="1-0")
        assert len(list(reports.evaluations())) == 1
        assert state.read().evaluations_done == 1

    def test_only_those_after_a_cursor_are_yielded(self, reports: Reports) -> None:
        for version in (1, 2, 3):
            reports.add_evaluation(replace(EVALUATION, policy_version=version), request_id=f"{version}-0")
        (first, _), *_ = reports.evaluations()
        assert [evaluation.policy_version for _, evaluation in reports.evaluations(first)] == [2, 3]

    def test_a_field_that_a_newer_version_wrote_is_ignored(
        self, reports: Reports, redis_client: RedisClient, keys: Keys
    ) -> None:
        newer = json.dumps({**asdict(EVALUATION), "success_by_weather": 1.0})
        redis_client.xadd(keys.evaluations, {"json": newer, "request": "1-0"})
        assert [evaluation for _, evaluation in reports.evaluations()] == [EVALUATION]

    def test_the_last_judged_request_is_remembered(self, reports: Reports) -> None:
        assert reports.last_judged_request() == "0-0"
        for request_id in ("5-0", "6-1"):
            reports.add_evaluation(EVALUATION, request_id=request_id)
        assert reports.last_judged_request() == "6-1"

    def test_requests_that_nobody_will_judge_are_counted_as_missed_once(
        self, reports: Reports, state: RunStateStore, redis_client: RedisClient, keys: Keys
    ) -> None:
        redis_client.hincrby(keys.run, "evaluations_requested", 3)
        reports.add_evaluation(EVALUATION, request_id="1-0")
        assert state.read().evaluations_waiting == 2
        assert [reports.settle_evaluations(read_to="3-0", last_judged="1-0") for _ in range(2)] == [2, 0]
        settled = state.read()
        assert (settled.evaluations_done, settled.evaluations_missed, settled.evaluations_waiting) == (3, 2, 0)
        assert len(list(reports.evaluations())) == 1

    def test_nothing_is_missed_while_a_request_has_not_been_read(
        self, reports: Reports, state: RunStateStore, redis_client: RedisClient, keys: Keys
    ) -> None:
        for request_id in ("1-0", "2-0"):
            redis_client.xadd(keys.evaluation_requests, {"m": b""}, id=request_id)
            redis_client.hincrby(keys.run, "evaluations_requested", 1)
        assert reports.settle_evaluations(read_to="1-0", last_judged=None) == 0
        assert reports.settle_evaluations(read_to="2-0", last_judged=None) == 2

    def test_nothing_is_missed_while_redis_lacks_the_last_result(
        self, reports: Reports, state: RunStateStore, redis_client: RedisClient, keys: Keys
    ) -> None:
        redis_client.hincrby(keys.run, "evaluations_requested", 2)
        assert reports.settle_evaluations(read_to="2-0", last_judged="2-0") == 0
        reports.add_evaluation(EVALUATION, request_id="2-0")
        assert reports.settle_evaluations(read_to="2-0", last_judged="2-0") == 1


class TestLearnerReports:
    def test_they_come_back_as_they_were_recorded(self, reports: Reports) -> None:
        assert reports.latest_learner_report() is None
        later = replace(REPORT, grad_steps=200, unix_seconds=2.5, metrics={})
        for report in (REPORT, later):
            reports.add_learner_report(report)
        assert [report for _, report in reports.learner_reports()] == [REPORT, later]
        assert reports.latest_learner_report() == later

    def test_one_that_is_repeated_for_a_lost_answer_is_recorded_once(
        self, reports: Reports, state: RunStateStore
    ) -> None:
        for _ in range(2):
            reports.add_learner_report(REPORT)
        assert [report for _, report in reports.learner_reports()] == [REPORT]

    def test_only_those_after_a_cursor_are_yielded(self, reports: Reports) -> None:
        for grad_steps in (1, 2, 3):
            reports.add_learner_report(replace(REPORT, grad_steps=grad_steps, unix_seconds=float(grad_steps)))
        (first, _), *_ = reports.learner_reports()
        assert [report.grad_steps for _, report in reports.learner_reports(first)] == [2, 3]


class TestLedgers:
    def test_a_run_without_actors_has_none(self, reports: Reports) -> None:
        assert reports.actors() == []

    def test_a_ledger_holds_all_that_its_actor_did(
        self,
        reports: Reports,
        writer: TrajectoryWriter,
        redis_client: RedisClient,
        keys: Keys,
        make_trajectory: MakeTrajectory,
    ) -> None:
        writer.register(replaces_crashed=True)
        solved = EpisodeOutcome(episode_return=-7.5, success=True)
        for _ in range(2):
            message = make_trajectory(0, steps=8, epoch=2, policy_version=4, truncated=True)
            writer.append(message, want_steps=10, outcome=solved)
        (ledger,) = reports.actors()
        assert ledger == ActorLedger(
            actor_id=0,
            epoch=2,
            next_sequence=1,
            stored_steps=8,
            duplicate_steps=8,
            quarantined_steps=0,
            lease=10,
            episodes=1,
            successes=1,
            restarts=1,
            policy_version=4,
            last_return=-7.5,
            last_seen_ms=int(redis_client.hget(keys.actor(0), "last_seen_ms") or 0),
        )
        assert ledger.last_seen_ms > 1_700_000_000_000

    def test_actors_are_ordered_by_their_numbers(
        self,
        reports: Reports,
        online_state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        spec: ExperienceSpec,
    ) -> None:
        for actor_id in (10, 9, 2):
            TrajectoryWriter(redis_client, keys, spec, actor_id=actor_id).register()
        assert [ledger.actor_id for ledger in reports.actors()] == [2, 9, 10]
        assert all(ledger.last_return is None for ledger in reports.actors())

    @pytest.mark.parametrize("written", ["", "a", "1.5", "1e3", "9" * 40, "\N{SUPERSCRIPT TWO}", " 1"])
    def test_an_account_that_somebody_has_written_into_is_read_and_named(
        self, reports: Reports, online_state: RunStateStore, redis_client: DamagingClient, keys: Keys, written: str,
        spec: ExperienceSpec,
    ) -> None:  # fmt: skip
        for actor_id in (0, 1):
            TrajectoryWriter(redis_client, keys, spec, actor_id=actor_id).register()
        redis_client.hset(keys.actor(1), "stored_steps", written)
        redis_client.hset(keys.actor(1), "last_return", "none")
        redis_client.sadd(keys.actors, "no index", written or "x")
        sound, damaged = reports.actors()
        assert (sound.actor_id, sound.epoch, sound.damaged) == (0, 1, ())
        assert (damaged.stored_steps, damaged.last_return) == (0, None)
        assert damaged.epoch == 1
        assert damaged.damaged == ("last_return", "stored_steps")
