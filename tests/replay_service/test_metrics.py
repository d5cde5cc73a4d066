from __future__ import annotations

import time

import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest

from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.metrics import RunReader, RunReading, register_run_metrics
from replay_service.redis_client import RedisClient
from replay_service.reports import Evaluation, Reports
from replay_service.run_state import Phase, RunStateStore
from replay_service.trajectory_stream import TrajectoryWriter
from replay_service.weights_channel import WeightsChannel
from tests.conftest import MakePolicyWeights, MakeTrajectory


@pytest.fixture
def registry(state: RunStateStore, redis_client: RedisClient, keys: Keys) -> CollectorRegistry:
    found = CollectorRegistry()
    register_run_metrics(found, RunReader(redis_client, keys).read)
    return found


@pytest.mark.parametrize(
    ("field", "metric"),
    [
        ("appended_steps", "awac_replay_env_steps_total"),
        ("episodes", "awac_replay_episodes_total"),
        ("successes", "awac_replay_successes_total"),
        ("duplicate_steps", "awac_replay_duplicate_steps_total"),
        ("quarantined_steps", "awac_replay_quarantined_steps_total"),
        ("quarantined_messages", "awac_replay_quarantined_messages_total"),
        ("actor_restarts", "awac_replay_actor_restarts_total"),
        ("learner_restarts", "awac_replay_learner_restarts_total"),
        ("evaluations_requested", "awac_replay_evaluation_requests_total"),
        ("evaluations_done", "awac_replay_evaluations_total"),
        ("evaluations_missed", "awac_replay_evaluations_missed_total"),
        ("retained_steps", "awac_replay_retained_transitions"),
        ("seed_steps", "awac_replay_seed_transitions"),
        ("leased_steps", "awac_replay_leased_steps"),
        ("grad_steps", "awac_replay_grad_steps"),
        ("policy_version", "awac_replay_policy_version"),
    ],
)
def test_each_metric_shows_its_counter(
    registry: CollectorRegistry, redis_client: RedisClient, keys: Keys, field: str, metric: str
) -> None:
    assert registry.get_sample_value(metric) == 0
    redis_client.hset(keys.run, field, 37)
    assert registry.get_sample_value(metric) == 37


def test_one_phase_is_1_and_the_others_are_0(registry: CollectorRegistry, state: RunStateStore) -> None:
    state.set_phase(Phase.PRETRAINING)
    shown = {phase: registry.get_sample_value("awac_replay_phase", {"phase": phase.value}) for phase in Phase}
    assert shown == {Phase.SEEDING: 0, Phase.PRETRAINING: 1, Phase.ONLINE: 0, Phase.FINISHED: 0}


def test_the_measured_ratio_appears_once_there_is_one(
    registry: CollectorRegistry, redis_client: RedisClient, keys: Keys
) -> None:
    assert registry.get_sample_value("awac_replay_utd_ratio") is None
    redis_client.hset(keys.run, mapping={"env_steps": 120, "online_grad_steps": 50})
    assert registry.get_sample_value("awac_replay_utd_ratio") == 0.5


def test_the_memory_is_that_of_the_server(registry: CollectorRegistry) -> None:
    memory = registry.get_sample_value("awac_replay_redis_memory_bytes")
    assert memory is not None
    assert memory > 100_000
    assert registry.get_sample_value("awac_replay_redis_memory_limit_bytes") == 512 * 2**20  # of the tests' server


def test_a_server_without_a_limit_shows_none(state: RunStateStore) -> None:
    registry = CollectorRegistry()
    register_run_metrics(registry, lambda: RunReading(state.read(), 1_000))
    assert registry.get_sample_value("awac_replay_redis_memory_bytes") == 1_000
    assert registry.get_sample_value("awac_replay_redis_memory_limit_bytes") is None


def test_settings_of_the_limiter_and_the_way_ahead(
    registry: CollectorRegistry, redis_client: RedisClient, keys: Keys
) -> None:
    redis_client.hset(keys.run, mapping={"env_steps": 120, "online_grad_steps": 90, "leased_steps": 10})
    expected = {"ahead": 20, "tolerance": 40, "budget": 200}
    assert {name: registry.get_sample_value(f"awac_replay_{name}_steps") for name in expected} == expected
    assert registry.get_sample_value("awac_replay_utd_ratio_setting") == 1
    assert registry.get_sample_value("awac_replay_capacity_transitions") == 100


def test_ages_are_told_as_times_and_only_when_there_is_something_to_tell(
    registry: CollectorRegistry,
    writer: TrajectoryWriter,
    redis_client: RedisClient,
    keys: Keys,
    make_trajectory: MakeTrajectory,
    make_policy_weights: MakePolicyWeights,
) -> None:
    names = ("awac_replay_oldest_timestamp_seconds", "awac_replay_policy_published_timestamp_seconds")
    assert [registry.get_sample_value(name) for name in names] == [None, None]
    before = time.time()
    writer.append(make_trajectory(0), want_steps=0)
    WeightsChannel(redis_client, keys).publish(make_policy_weights(1))
    for name in names:
        value = registry.get_sample_value(name)
        assert value is not None
        assert before - 1.0 <= value <= time.time() + 1.0


def test_the_success_at_the_hand_over_stays_while_others_follow(
    registry: CollectorRegistry, redis_client: RedisClient, keys: Keys
) -> None:
    reports = Reports(redis_client, keys)

    def judge(version: int, env_steps: int, success: float) -> float | None:
        result = Evaluation(version, env_steps, 20, success, success, success, -9.0, 20.0, 2, 1.0, 0.0)
        reports.add_evaluation(result, request_id=f"{version}-1")
        return registry.get_sample_value("awac_replay_offline_success_ratio", {"kind": "any"})

    assert judge(0, 0, 0.1) is None  # the untrained policy
    assert judge(1, 0, 0.7) == 0.7
    assert judge(2, 100, 0.9) == 0.7
    assert registry.get_sample_value("awac_replay_offline_episode_return") == -9.0


def test_the_exposition_names_and_explains_every_metric(registry: CollectorRegistry) -> None:
    text = generate_latest(registry).decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert len(names) == 24
    for name in names:
        assert name.startswith("awac_replay_")
        (explanation,) = (line for line in text.splitlines() if line.startswith(f"# HELP {name} "))
        assert explanation.endswith(".")


def test_an_outage_of_redis_is_a_gap_and_no_crash() -> None:
    nobody = connect(RedisEndpoint("redis://127.0.0.1:1"))
    store = RunStateStore(nobody, Keys("gone"))
    with pytest.raises(redis.exceptions.ConnectionError):
        store.read()
    registry = CollectorRegistry()
    register_run_metrics(registry, lambda: RunReading(store.read(), 0))
    assert generate_latest(registry) == b""
