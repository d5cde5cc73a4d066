from __future__ import annotations

from dataclasses import replace

import pytest

from replay_service.config import EnvironmentConfig, RunConfig
from replay_service.errors import DamagedState, RunDirectoryError, SpecMismatch
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.run_state import Phase, RunState, RunStateStore


@pytest.fixture
def empty(redis_client: RedisClient, keys: Keys) -> RunStateStore:
    return RunStateStore(redis_client, keys)


def test_a_new_run_begins_with_seeding_and_no_steps(empty: RunStateStore, run_config: RunConfig) -> None:
    assert empty.initialise(run_config) is False
    assert empty.exists()
    state = empty.read()
    assert state.phase is Phase.SEEDING
    assert (state.env_steps, state.grad_steps, state.policy_version, state.episodes) == (0, 0, 0, 0)
    assert (state.num_env_steps, state.num_offline_steps) == (200, 20)
    assert state.spec_fingerprint == run_config.spec.fingerprint
    assert state.stop_requested == ""


def test_a_run_that_nobody_created_is_not_read_as_an_empty_one(empty: RunStateStore, keys: Keys) -> None:
    assert not empty.exists()
    with pytest.raises(RunDirectoryError, match=keys.run_id):
        empty.read()


def test_a_second_initialisation_resumes_with_all_counters(
    state: RunStateStore, run_config: RunConfig, redis_client: RedisClient, keys: Keys
) -> None:
    state.set_phase(Phase.ONLINE)
    redis_client.hset(keys.run, mapping={"env_steps": 120, "grad_steps": 140, "policy_version": 9})
    assert state.initialise(run_config) is True
    resumed = state.read()
    assert state.env_steps() == 120  # an earlier version kept this counter in the run's hash: it has been moved
    assert resumed.phase is Phase.ONLINE
    assert (resumed.env_steps, resumed.grad_steps, resumed.policy_version) == (120, 140, 9)


def test_seeding_is_left_once(empty: RunStateStore, run_config: RunConfig) -> None:
    empty.initialise(run_config)
    empty.leave_seeding()
    assert empty.read().phase is Phase.PRETRAINING
    empty.set_phase(Phase.ONLINE)
    empty.leave_seeding()  # repeated, because the answer was lost
    assert empty.read().phase is Phase.ONLINE


@pytest.mark.parametrize(
    ("phase", "status", "more", "kept"),
    [
        (Phase.FINISHED, "finished", 0, b"finished"),
        (Phase.FINISHED, "finished", 100, None),
        (Phase.FINISHED, "failed", 0, None),
        (Phase.ONLINE, "finished", 0, None),
    ],
)
def test_a_run_that_is_finished_stays_so_until_its_budget_grows(
    state: RunStateStore, run_config: RunConfig, redis_client: RedisClient, keys: Keys,
    phase: Phase, status: str, more: int, kept: bytes | None,
) -> None:  # fmt: skip
    state.set_phase(phase)
    redis_client.hset(keys.counters, "env_steps", run_config.num_env_steps)
    state.set_final_status(status)
    state.initialise(replace(run_config, num_env_steps=run_config.num_env_steps + more))
    assert redis_client.hget(keys.run, "final_status") == kept


def test_an_initialisation_that_was_cut_short_is_completed(
    empty: RunStateStore, run_config: RunConfig, redis_client: RedisClient, keys: Keys
) -> None:
    redis_client.hset(keys.run, "spec_fingerprint", run_config.spec.fingerprint)
    empty.initialise(run_config)
    assert empty.read().phase is Phase.SEEDING
    assert empty.read().num_env_steps == 200


def test_a_resumed_run_takes_the_new_budget_and_limiter(
    state: RunStateStore, run_config: RunConfig, redis_client: RedisClient, keys: Keys
) -> None:
    longer = replace(
        run_config,
        num_env_steps=500,
        utd_ratio=0.5,
        initial_env_steps=30,
        max_env_steps_ahead=77,
        replay=replace(run_config.replay, capacity=1_234),
    )
    assert state.initialise(longer) is True
    values = redis_client.hgetall(keys.run)
    assert state.read().num_env_steps == 500
    assert (values[b"utd_ratio"], values[b"initial_env_steps"]) == (b"0.5", b"30")
    assert (values[b"tolerance_env_steps"], values[b"replay_capacity"]) == (b"77", b"1234")


def test_initial_steps_never_exceed_the_budget(
    empty: RunStateStore, run_config: RunConfig, redis_client: RedisClient, keys: Keys
) -> None:
    empty.initialise(replace(run_config, num_env_steps=5))
    assert redis_client.hget(keys.run, "initial_env_steps") == b"5"


def test_a_run_of_another_environment_is_refused_and_left_as_it_is(state: RunStateStore, run_config: RunConfig) -> None:
    before = state.read()
    other = replace(
        run_config,
        num_env_steps=9_999,
        environment=EnvironmentConfig(max_episode_steps=20, observation_dim=4, action_dim=1),
    )
    with pytest.raises(SpecMismatch, match="choose another run directory"):
        state.initialise(other)
    assert state.read() == before


def test_a_stop_request_lasts_until_the_run_is_resumed(state: RunStateStore, run_config: RunConfig) -> None:
    state.request_stop("launcher down")
    assert state.read().stop_requested == "launcher down"
    state.initialise(run_config)
    assert state.read().stop_requested == ""


def test_the_final_status_is_forgotten_when_the_run_is_resumed(
    state: RunStateStore, run_config: RunConfig, redis_client: RedisClient, keys: Keys
) -> None:
    state.set_final_status("finished")
    assert redis_client.hget(keys.run, "final_status") == b"finished"
    state.initialise(run_config)
    assert redis_client.hget(keys.run, "final_status") is None


def test_learner_restarts_are_counted(state: RunStateStore) -> None:
    state.count_learner_restart()
    state.count_learner_restart()
    assert state.read().learner_restarts == 2


def test_endpoints_come_and_go(state: RunStateStore) -> None:
    state.publish_endpoint("learner", "127.0.0.1:1")
    state.publish_endpoint("actor-0", "127.0.0.1:2")
    state.publish_endpoint("actor-0", "127.0.0.1:3")
    assert state.endpoints() == {"actor-0": "127.0.0.1:3", "learner": "127.0.0.1:1"}
    state.withdraw_endpoint("learner")
    assert state.endpoints() == {"actor-0": "127.0.0.1:3"}


@pytest.mark.parametrize(
    ("env_steps", "online_grad_steps", "expected"), [(0, 0, None), (20, 0, None), (40, 10, 0.5), (120, 100, 1.0)]
)
def test_the_measured_utd_ratio_leaves_the_initial_steps_out(
    env_steps: int, online_grad_steps: int, expected: float | None
) -> None:
    counters = {"env_steps": env_steps, "online_grad_steps": online_grad_steps, "initial_env_steps": 20}
    state = RunState.from_hash({name.encode(): str(value).encode() for name, value in counters.items()})
    assert state.measured_utd_ratio == expected


def test_two_runs_in_one_redis_do_not_meet(
    state: RunStateStore, run_config: RunConfig, redis_client: RedisClient, keys: Keys
) -> None:
    other = RunStateStore(redis_client, Keys(f"{keys.run_id}-other"))
    other.initialise(replace(run_config, num_env_steps=7))
    other.set_phase(Phase.FINISHED)
    assert (state.read().phase, state.read().num_env_steps) == (Phase.SEEDING, 200)


def test_the_band_of_the_ratio_follows_from_the_limiter(
    state: RunStateStore, redis_client: RedisClient, keys: Keys
) -> None:
    assert state.read().utd_band is None
    redis_client.hset(keys.run, mapping={"env_steps": 120, "online_grad_steps": 90, "leased_steps": 10})
    found = state.read()
    assert (found.utd_ratio, found.initial_env_steps, found.tolerance_env_steps, found.replay_capacity) == (
        1.0, 20, 40, 100,
    )  # fmt: skip
    assert found.measured_utd_ratio == 0.9
    assert found.utd_band == pytest.approx((0.6, 1.0))
    assert found.env_steps_ahead == 120 + 10 - 20 - 90


def test_a_band_wider_than_the_run_begins_at_zero(state: RunStateStore, redis_client: RedisClient, keys: Keys) -> None:
    redis_client.hset(keys.run, "env_steps", 30)
    assert state.read().utd_band == (0.0, 1.0)


@pytest.mark.parametrize(
    ("field", "written"), [("env_steps", b"x"), ("phase", b"lunch"), ("utd_ratio", b"one"), ("stop_requested", b"\xff")]
)
def test_a_field_that_holds_something_else_is_named(field: str, written: bytes) -> None:
    with pytest.raises(DamagedState, match=rf"{field} holds b"):
        RunState.from_hash({field.encode(): written})


def test_a_stop_that_was_asked_for_outlives_a_crash_of_the_service_but_not_the_session(
    state: RunStateStore, run_config: RunConfig
) -> None:
    state.request_stop("launcher down")
    state.initialise(run_config, keep_stop=True)
    assert state.read().stop_requested == "launcher down"
    state.initialise(run_config)
    assert state.read().stop_requested == ""
