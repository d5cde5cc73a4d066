"""Readings of a run in a real Redis."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from launcher.snapshot import SnapshotReader
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.reports import LearnerReport, Reports
from replay_service.run_state import RunStateStore
from replay_service.weights_channel import WeightsChannel
from tests.damaging_client import DamagingClient
from tests.launcher import made_snapshots

if TYPE_CHECKING:
    from tests.conftest import MakePolicyWeights


def report(number: int) -> LearnerReport:
    return LearnerReport(10 * number, number, float(number), {"waiting_ratio": 0.5})


def test_a_reader_takes_up_the_newest_reports_and_follows_on(
    state: RunStateStore, redis_client: RedisClient, keys: Keys
) -> None:
    reports = Reports(redis_client, keys)
    for number in range(200):
        reports.add_learner_report(report(number))
    reader = SnapshotReader(redis_client, keys)
    assert [r.env_steps for r in reader.read().reports] == list(range(50, 200))
    reports.add_learner_report(report(200))
    found = reader.read()
    assert [r.env_steps for r in found.reports] == list(range(51, 201))
    assert found.report == report(200)


def test_an_evaluation_that_redis_forgot_and_was_told_again_is_shown_once(
    state: RunStateStore, redis_client: DamagingClient, keys: Keys
) -> None:
    reader, reports = SnapshotReader(redis_client, keys), Reports(redis_client, keys)
    for seconds in (1.0, 2.0):
        evaluation = replace(made_snapshots.evaluation(3, 100, 0.5), seconds=seconds)
        # As a Redis that was killed before it wrote its file. Trimmed, not deleted: a stream made anew within the
        # millisecond would give out the same ids again, which no Redis that had to start first can do.
        redis_client.xtrim(keys.evaluations, maxlen=0, approximate=False)
        reports.add_evaluation(evaluation, request_id="3-0")
        assert reader.read().evaluations == [evaluation]


def test_before_the_first_report_there_is_none_and_later_ones_are_seen(
    state: RunStateStore, redis_client: RedisClient, keys: Keys
) -> None:
    reader = SnapshotReader(redis_client, keys)
    assert (reader.read().report, reader.read().reports) == (None, ())
    Reports(redis_client, keys).add_learner_report(report(1))
    assert reader.read().reports == (report(1),)


def test_the_age_of_weights_follows_from_their_publication(
    state: RunStateStore, redis_client: RedisClient, keys: Keys, make_policy_weights: MakePolicyWeights
) -> None:
    reader = SnapshotReader(redis_client, keys)
    WeightsChannel(redis_client, keys).publish(make_policy_weights(1))
    time.sleep(0.05)
    age = reader.read().weight_age_s(1)
    assert age is not None
    assert 0.0 < age < 60.0
    assert reader.read().weight_age_s(2) is None


def test_the_memory_and_its_limit_are_the_servers(state: RunStateStore, redis_client: RedisClient, keys: Keys) -> None:
    memory = SnapshotReader(redis_client, keys).read().memory
    assert memory is not None
    assert memory.limit_bytes == 512 * 2**20  # of the tests' server
    assert memory.ratio == memory.used_bytes / memory.limit_bytes
