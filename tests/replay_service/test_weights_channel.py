from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from replay_service import wire
from replay_service.errors import WireError
from replay_service.experience import ExperienceSpec
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.run_state import Phase, RunStateStore
from replay_service.weights_channel import EVALUATION_BACKLOG, EvaluationRequests, PublicationTimes, WeightsChannel

if TYPE_CHECKING:
    from tests.conftest import MakePolicyWeights


@pytest.fixture
def channel(state: RunStateStore, redis_client: RedisClient, keys: Keys) -> WeightsChannel:
    return WeightsChannel(redis_client, keys)


@pytest.fixture
def requests(redis_client: RedisClient, keys: Keys) -> EvaluationRequests:
    return EvaluationRequests(redis_client, keys)


def versions(requests: EvaluationRequests) -> list[int]:
    found = []
    while (request := requests.next(block_ms=1)) is not None:
        found.append(request.policy.version)
    return found


def test_before_the_first_version_there_is_nothing(channel: WeightsChannel) -> None:
    assert channel.fetch() is None


def test_the_newest_version_is_fetched_unchanged(
    channel: WeightsChannel, state: RunStateStore, make_policy_weights: MakePolicyWeights
) -> None:
    for version in (1, 2):
        channel.publish(make_policy_weights(version))
    got = channel.fetch()
    assert got is not None
    assert wire.encode_policy_weights(got) == wire.encode_policy_weights(make_policy_weights(2))
    assert state.read().policy_version == 2


def test_a_phase_can_begin_with_a_version(
    channel: WeightsChannel, state: RunStateStore, make_policy_weights: MakePolicyWeights
) -> None:
    channel.publish(make_policy_weights(1))
    assert state.read().phase is Phase.SEEDING
    channel.publish(make_policy_weights(2), enter=Phase.ONLINE)
    assert (state.read().phase, state.read().policy_version) == (Phase.ONLINE, 2)


def test_weights_of_any_other_kind_are_refused(channel: WeightsChannel, redis_client: RedisClient, keys: Keys) -> None:
    redis_client.set(keys.weights, b"not weights")
    with pytest.raises(WireError):
        channel.fetch()


def test_the_evaluator_gets_the_versions_meant_for_it_in_order(
    channel: WeightsChannel,
    requests: EvaluationRequests,
    state: RunStateStore,
    make_policy_weights: MakePolicyWeights,
) -> None:
    for version in range(1, 6):
        policy = make_policy_weights(version)
        channel.publish(policy, evaluated=policy if version % 2 == 1 else None)
    assert state.read().evaluations_requested == 3
    assert versions(requests) == [1, 3, 5]
    assert versions(requests) == []


def test_the_untrained_policy_is_judged_but_not_given_to_actors(
    channel: WeightsChannel,
    requests: EvaluationRequests,
    state: RunStateStore,
    make_policy_weights: MakePolicyWeights,
) -> None:
    channel.request_evaluation(make_policy_weights(0))
    assert channel.fetch() is None
    assert (state.read().policy_version, state.read().evaluations_requested) == (0, 1)
    assert versions(requests) == [0]


def test_an_evaluator_that_comes_back_goes_on_after_its_last_request(
    channel: WeightsChannel,
    requests: EvaluationRequests,
    redis_client: RedisClient,
    keys: Keys,
    make_policy_weights: MakePolicyWeights,
) -> None:
    for version in (1, 2, 3):
        channel.publish(make_policy_weights(version), evaluated=make_policy_weights(version))
    first = requests.next(block_ms=1)
    assert first is not None
    resumed = EvaluationRequests(redis_client, keys, cursor=first.request_id)
    assert versions(resumed) == [2, 3]


def test_a_damaged_request_is_reported_once_and_passed(
    channel: WeightsChannel,
    requests: EvaluationRequests,
    redis_client: RedisClient,
    keys: Keys,
    make_policy_weights: MakePolicyWeights,
) -> None:
    redis_client.xadd(keys.evaluation_requests, {"m": b"damaged"})
    redis_client.xadd(keys.evaluation_requests, {"other": b"field"})
    channel.publish(make_policy_weights(7), evaluated=make_policy_weights(7))
    for _ in range(2):
        with pytest.raises(WireError):
            requests.next(block_ms=1)
    assert versions(requests) == [7]


def test_requests_that_nobody_takes_do_not_pile_up_without_end(
    channel: WeightsChannel, redis_client: RedisClient, keys: Keys, make_policy_weights: MakePolicyWeights
) -> None:
    """By their number `EvaluationRequests.lost` tells what Redis has forgotten from what a full queue dropped: they are
    exactly as many, also where several share a node of the stream, which Redis would rather trim as a whole.
    """
    for version in range(1, 101):
        channel.publish(make_policy_weights(version), evaluated=make_policy_weights(version))
        assert redis_client.xlen(keys.evaluation_requests) == min(version, EVALUATION_BACKLOG)
    waiting = redis_client.xrange(keys.evaluation_requests)
    kept = [wire.decode_policy_weights(fields[b"m"]).version for _, fields in waiting]
    assert kept == list(range(101 - EVALUATION_BACKLOG, 101))


def test_publications_say_when_each_version_came_out(
    channel: WeightsChannel, redis_client: RedisClient, keys: Keys, make_policy_weights: MakePolicyWeights
) -> None:
    times = PublicationTimes(redis_client, keys)
    assert times.read() == {}
    before = time.time()
    channel.publish(make_policy_weights(1))
    channel.publish(make_policy_weights(1))  # repeated for a lost answer
    assert list(times.read()) == [1]
    channel.publish(make_policy_weights(2))
    found = times.read()
    assert list(found) == [1, 2]
    assert before - 1.0 <= found[1] <= found[2] <= time.time() + 1.0
    assert PublicationTimes(redis_client, keys).read() == found


def test_the_history_of_publications_is_bounded(
    channel: WeightsChannel, redis_client: RedisClient, keys: Keys, make_policy_weights: MakePolicyWeights
) -> None:
    times = PublicationTimes(redis_client, keys)
    with redis_client.pipeline(transaction=False) as pipe:
        for version in range(1, 1_500):
            pipe.xadd(keys.publications, {"version": version})
        pipe.execute()
    channel.publish(make_policy_weights(1_500))
    assert redis_client.xlen(keys.publications) < 1_200  # Redis trims by whole nodes
    assert list(times.read())[-1] == 1_500
    assert len(times.read()) == 1_000


def test_weights_for_another_environment_are_refused_where_one_is_named(
    channel: WeightsChannel, make_policy_weights: MakePolicyWeights, spec: ExperienceSpec
) -> None:
    channel.publish(make_policy_weights(1))
    assert channel.fetch(fitting=spec) is not None
    with pytest.raises(WireError, match=r"sizes \(4, 1\), got \(3, 1\)"):
        channel.fetch(fitting=replace(spec, observation_dim=4))
