from __future__ import annotations

import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest

from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.metrics import register_run_metrics
from replay_service.redis_client import RedisClient
from replay_service.run_state import Phase, RunState, RunStateStore


@pytest.fixture
def registry(state: RunStateStore, redis_client: RedisClient) -> CollectorRegistry:
    def read() -> tuple[RunState, int]:
        return state.read(), int(redis_client.info("memory")["used_memory"])

    found = CollectorRegistry()
    register_run_metrics(found, read)
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
        ("evaluations_done", "awac_replay_evaluations_total"),
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


def test_the_exposition_names_and_explains_every_metric(registry: CollectorRegistry) -> None:
    text = generate_latest(registry).decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert len(names) == 16
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
    register_run_metrics(registry, lambda: (store.read(), 0))
    assert generate_latest(registry) == b""
