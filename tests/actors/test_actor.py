"""Actor processes, started as the launcher starts them, against a real Redis with a published policy."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from actors.__main__ import parse_indices
from actors.actor import Actor, actor_generator
from actors.config import ActorConfig
from actors.environment import make_environment
from actors.lockstep import play_turn
from actors.policy import NumpyPolicy
from replay_service.config import ReplayConfig, RunConfig
from replay_service.connection import RedisEndpoint, connect
from replay_service.errors import ConfigError
from replay_service.experience import ExperienceSpec, Trajectory
from replay_service.keys import Keys
from replay_service.policy_weights import PolicySpec, PolicyWeights
from replay_service.process import StopSignal
from replay_service.redis_client import RedisClient
from replay_service.redis_server import EmbeddedRedis, find_server
from replay_service.reports import ActorLedger, Reports
from replay_service.run_state import Phase, RunStateStore
from replay_service.trajectory_stream import StreamEntry, TrajectoryReader, TrajectoryWriter
from replay_service.weights_channel import WeightsChannel
from tests.conftest import PATIENCE_S
from tests.damaging_client import DamagingClient
from tests.policies import policy_weights

MakePolicyWeights = Callable[..., PolicyWeights]
WaitUntil = Callable[[Callable[[], bool], str], None]


class ActorPoolProcess:
    """`python -m actors actor`, with its output in a file."""

    def __init__(self, config: Path, endpoint: RedisEndpoint, *, indices: str, log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "actors", "actor", "--config", str(config), "--indices", indices],
                env={**os.environ, **endpoint.environment()},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE_S)

    def terminate(self) -> int:
        self.process.terminate()
        return self.wait()


StartActors = Callable[..., ActorPoolProcess]


@pytest.fixture
def start_actors(run_config: RunConfig, redis_endpoint: RedisEndpoint, tmp_path: Path) -> Iterator[StartActors]:
    """Start actor processes of the run; none outlives the test."""
    started: list[ActorPoolProcess] = []

    def start(indices: str = "0", *, run: RunConfig = run_config, **actor: Any) -> ActorPoolProcess:
        config = tmp_path / "run.toml"
        config.write_bytes(tomli_w.dumps({**asdict(run), "actor": actor}).encode())
        log = tmp_path / f"actors-{len(started)}.log"
        started.append(ActorPoolProcess(config, redis_endpoint, indices=indices, log=log))
        return started[-1]

    yield start
    for pool in started:
        pool.process.kill()
        pool.process.wait()


@pytest.fixture
def channel(redis_client: RedisClient, keys: Keys) -> WeightsChannel:
    return WeightsChannel(redis_client, keys)


@pytest.fixture
def ledgers(redis_client: RedisClient, keys: Keys) -> Callable[[], list[ActorLedger]]:
    return Reports(redis_client, keys).actors


@pytest.fixture
def trajectories(redis_client: RedisClient, keys: Keys, spec: ExperienceSpec) -> Callable[[], list[Trajectory]]:
    """All that the stream retains; every entry must be valid."""

    def read() -> list[Trajectory]:
        entries = list(TrajectoryReader(redis_client, keys.online, spec).read(count=1_000))
        return [entry.trajectory for entry in entries if isinstance(entry, StreamEntry) or pytest.fail(entry.reason)]

    return read


def test_an_actor_waits_for_the_phase_acts_within_the_limiter_follows_the_policy_and_leaves_in_order(
    start_actors: StartActors, state: RunStateStore, channel: WeightsChannel, redis_client: RedisClient, keys: Keys,
    make_policy_weights: MakePolicyWeights, ledgers: Callable[[], list[ActorLedger]],
    trajectories: Callable[[], list[Trajectory]], wait_until: WaitUntil,
) -> None:  # fmt: skip
    pool = start_actors()
    wait_until(lambda: [a.epoch for a in ledgers()] == [1], "the actor to register")
    seen = ledgers()[0].last_seen_ms
    wait_until(lambda: ledgers()[0].last_seen_ms > seen, "the actor to ask again")
    assert state.read().env_steps == state.read().leased_steps == 0  # it asks, and is not admitted before the phase

    channel.publish(make_policy_weights(1), enter=Phase.ONLINE)
    wait_until(lambda: state.read().env_steps == 60, "initial_env_steps + max_env_steps_ahead")
    seen = ledgers()[0].last_seen_ms
    wait_until(lambda: ledgers()[0].last_seen_ms > seen, "the actor to ask again")
    assert state.read().env_steps == 60  # the limiter's band is full

    channel.publish(make_policy_weights(2))
    redis_client.hset(keys.run, "online_grad_steps", 20)
    wait_until(lambda: state.read().env_steps == 80, "the steps that twenty gradient steps allow")

    def metrics() -> list[str]:
        with urllib.request.urlopen(f"http://{state.endpoints()['actor-0']}/metrics", timeout=PATIENCE_S) as reply:
            text: str = reply.read().decode()
            return text.splitlines()

    # The steps are in Redis before the actor hears of it; episodes are the last that it counts then.
    wait_until(lambda: 'awac_actor_episodes_total{actor="0"} 4.0' in metrics(), "four episodes to be counted")
    assert 'awac_actor_env_steps_total{actor="0"} 80.0' in metrics()
    assert 'awac_actor_policy_version{actor="0"} 2.0' in metrics()

    assert pool.terminate() == 0, pool.output
    assert state.endpoints() == {}
    assert (ledgers()[0].lease, state.read().leased_steps) == (0, 0)
    found = trajectories()
    assert [t.num_steps for t in found] == [10] * 8
    assert [t.origin.sequence for t in found] == list(range(8))
    assert [t.origin.policy_version for t in found] == [1] * 6 + [2] * 2
    assert [t.truncated for t in found] == [False, True] * 4


def test_a_stop_in_the_middle_gives_back_the_rest_of_the_lease(
    start_actors: StartActors, online_state: RunStateStore, run_config: RunConfig, channel: WeightsChannel,
    make_policy_weights: MakePolicyWeights, ledgers: Callable[[], list[ActorLedger]],
    trajectories: Callable[[], list[Trajectory]], wait_until: WaitUntil,
) -> None:  # fmt: skip
    # One message of a hundred thousand steps: an actor that is stopped is inside of it, and cuts it short.
    shape = replace(run_config.environment, max_episode_steps=100_000)
    run = replace(run_config, environment=shape, rollout_length=100_000, num_env_steps=10**6,
                  max_env_steps_ahead=200_000, replay=ReplayConfig(capacity=100_000))  # fmt: skip
    redis_fingerprint_of(online_state, run)
    online_state.initialise(run)
    channel.publish(make_policy_weights(1))
    pool = start_actors(run=run)
    wait_until(lambda: online_state.read().leased_steps == 100_000, "the actor to be admitted")
    assert pool.terminate() == 0, pool.output
    final = online_state.read()
    assert final.leased_steps == ledgers()[0].lease == 0
    assert final.env_steps == ledgers()[0].stored_steps < 100_000


def redis_fingerprint_of(store: RunStateStore, run: RunConfig) -> None:
    """Make the run in Redis one with `run`'s spec; it has no data yet."""
    store._client.hset(store._keys.run, "spec_fingerprint", run.spec.fingerprint)


def test_a_killed_actor_is_replaced_and_counted_and_the_budget_is_met_exactly(
    start_actors: StartActors, online_state: RunStateStore, run_config: RunConfig, channel: WeightsChannel,
    redis_client: RedisClient, keys: Keys, make_policy_weights: MakePolicyWeights,
    ledgers: Callable[[], list[ActorLedger]], wait_until: WaitUntil,
) -> None:  # fmt: skip
    run = replace(run_config, num_env_steps=205)  # whoever takes the last five has asked for ten
    online_state.initialise(run)
    channel.publish(make_policy_weights(1))
    pool = start_actors("3-4", run=run)
    wait_until(lambda: [(a.actor_id, a.epoch) for a in ledgers()] == [(3, 1), (4, 1)], "both to register")
    os.kill(pool.children[0], signal.SIGKILL)
    wait_until(lambda: sum(a.restarts for a in ledgers()) == 1, "the actor to be replaced")
    assert sorted(a.epoch for a in ledgers()) == [1, 2]
    assert online_state.read().actor_restarts == 1
    assert len(pool.children) == 2
    redis_client.hset(keys.run, "online_grad_steps", 200)
    wait_until(lambda: online_state.read().env_steps >= 205, "the budget")
    assert pool.terminate() == 0, pool.output
    assert (online_state.read().env_steps, online_state.read().leased_steps) == (205, 0)


def test_a_pool_gives_up_when_its_restarts_are_spent(
    start_actors: StartActors, online_state: RunStateStore, ledgers: Callable[[], list[ActorLedger]],
    wait_until: WaitUntil, process_is_running: Callable[[int], bool],
) -> None:  # fmt: skip
    pool = start_actors("0-1", max_restarts=0)
    wait_until(lambda: len(ledgers()) == 2, "both to register")
    children = pool.children
    os.kill(children[0], signal.SIGKILL)
    assert pool.wait() == 1
    assert "ended with code -9: 0 restarts within 600 s are spent, giving up" in pool.output
    assert not any(process_is_running(child) for child in children)


def test_a_registration_that_redis_lost_is_made_again(
    start_actors: StartActors, online_state: RunStateStore, channel: WeightsChannel, redis_client: RedisClient,
    keys: Keys, make_policy_weights: MakePolicyWeights, ledgers: Callable[[], list[ActorLedger]],
    wait_until: WaitUntil,
) -> None:  # fmt: skip
    redis_client.hset(keys.actor(0), "epoch", 5)
    pool = start_actors()
    wait_until(lambda: [a.epoch for a in ledgers()] == [6], "the actor to register")
    redis_client.hset(keys.actor(0), "epoch", 5)
    wait_until(lambda: ledgers()[0].epoch == 6, "the actor to register again")
    channel.publish(make_policy_weights(1))
    wait_until(lambda: online_state.read().env_steps == 60, "steps")
    assert pool.terminate() == 0, pool.output
    assert online_state.read().actor_restarts == 0


def test_what_was_acknowledged_in_an_epoch_that_redis_lost_is_stored_again_in_the_next(
    start_actors: StartActors, online_state: RunStateStore, channel: WeightsChannel, redis_client: DamagingClient,
    keys: Keys, make_policy_weights: MakePolicyWeights, ledgers: Callable[[], list[ActorLedger]],
    trajectories: Callable[[], list[Trajectory]], wait_until: WaitUntil,
) -> None:  # fmt: skip
    channel.publish(make_policy_weights(1))
    pool = start_actors(resend_window_s=60.0)
    wait_until(lambda: online_state.read().env_steps == 60, "the limiter's band to be full")
    before = trajectories()
    with redis_client.pipeline(transaction=True) as pipe:  # as if Redis had died before any of it was on the disk
        pipe.delete(keys.actor(0), keys.actors, keys.counters, keys.online)
        pipe.execute()
    wait_until(lambda: online_state.read().env_steps == 60, "the same steps again")
    after = trajectories()
    assert [t.origin for t in after] == [t.origin for t in before]
    assert all(np.array_equal(a.observations, b.observations) for a, b in zip(after, before, strict=True))
    redis_client.hset(keys.run, "online_grad_steps", 20)
    wait_until(lambda: online_state.read().env_steps == 80, "the actor to go on")
    found = trajectories()
    assert [(t.origin.sequence, t.origin.episode) for t in found] == [(n, n // 2) for n in range(8)]
    assert len({t.actions.tobytes() for t in found}) == 8  # nothing was played a second time
    assert ledgers()[0].stored_steps == 80
    assert pool.terminate() == 0, pool.output
    assert "actor 0 has sent 6 of 6 messages again" in pool.output


class TestRefusals:
    """Exit code 2, one line that says why, no traceback, and no replacement that would fail the same way."""

    def assert_refused(self, pool: ActorPoolProcess, reason: str) -> None:
        assert pool.wait() == 2
        assert reason in pool.output
        assert "Traceback" not in pool.output

    def test_this_machines_environment_is_not_the_runs(
        self, start_actors: StartActors, online_state: RunStateStore, run_config: RunConfig
    ) -> None:
        run = replace(run_config, environment=replace(run_config.environment, observation_dim=4))
        self.assert_refused(start_actors("0-1", run=run), "observation_dim=3, action_dim=1, max_episode_steps=20) from")

    def test_the_run_in_redis_is_another(
        self, start_actors: StartActors, online_state: RunStateStore, run_config: RunConfig
    ) -> None:
        run = replace(run_config, environment=replace(run_config.environment, max_episode_steps=30))
        reason = f"actor 0 does not fit run {run.run_id!r}: max episode steps 30 here, 20 there"
        self.assert_refused(start_actors(run=run), reason)

    def test_another_incarnation_takes_over(
        self, start_actors: StartActors, online_state: RunStateStore, redis_client: RedisClient, keys: Keys,
        spec: ExperienceSpec, ledgers: Callable[[], list[ActorLedger]], wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        pool = start_actors()
        wait_until(lambda: [a.epoch for a in ledgers()] == [1], "the actor to register")
        TrajectoryWriter(redis_client, keys, spec, actor_id=0).register()
        self.assert_refused(pool, "actor 0: epoch 1 has been replaced by epoch 2; this process must end")

    def test_there_is_no_such_environment(
        self, start_actors: StartActors, online_state: RunStateStore, run_config: RunConfig
    ) -> None:
        run = replace(run_config, env="Pendulm-v1")
        self.assert_refused(start_actors(run=run), "Did you mean 'Pendulum-v1'?")


class TestParseIndices:
    @pytest.mark.parametrize(("text", "expected"), [("3", (3,)), ("0-2", (0, 1, 2)), ("5-5", (5,))])
    def test_reads_an_index_or_a_range(self, text: str, expected: tuple[int, ...]) -> None:
        assert parse_indices(text) == expected

    @pytest.mark.parametrize("text", ["", "x", "-1", "2-1", "1-", "1-2-3", "0,1"])
    def test_refuses_anything_else(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"--indices: expected an index like 3 or a range like 0-7"):
            parse_indices(text)


def test_each_seed_actor_and_epoch_has_a_generator_of_its_own() -> None:
    drawn = {
        actor_generator(seed, actor, epoch).bytes(16) for seed in (0, 1) for actor in (0, 1, 2) for epoch in (1, 2)
    }
    drawn |= {actor_generator(0, 0, 1, epochs_before=begun).bytes(16) for begun in (1, 2)}
    assert len(drawn) == 14
    np.testing.assert_array_equal(actor_generator(1, 2, 3).random(5), actor_generator(1, 2, 3).random(5))


def test_an_actor_acts_with_no_weights_but_those_that_fit(
    start_actors: StartActors, state: RunStateStore, redis_client: RedisClient, keys: Keys,
    make_policy_weights: MakePolicyWeights, ledgers: Callable[[], list[ActorLedger]], wait_until: WaitUntil,
) -> None:  # fmt: skip
    """Damaged weights and a stranger's: it waits for its first ones, and later keeps those that it has."""
    state.set_phase(Phase.ONLINE)
    redis_client.set(keys.weights, b"nothing that anybody could read")
    redis_client.hset(keys.run, "policy_version", 1)
    pool = start_actors()
    wait_until(lambda: [a.lease for a in ledgers()] == [10], "the actor to be admitted")
    time.sleep(1.5)
    assert state.read().env_steps == 0
    WeightsChannel(redis_client, keys).publish(make_policy_weights(2))
    wait_until(lambda: state.read().env_steps >= 10, "the actor to act with weights that fit")
    stranger = PolicySpec(observation_dim=7, action_dim=2, hidden_sizes=())
    WeightsChannel(redis_client, keys).publish(policy_weights(stranger, version=3))
    before = state.read().env_steps
    redis_client.hset(keys.run, "online_grad_steps", 200)  # room to go on
    wait_until(lambda: state.read().env_steps > before + 30, "the actor to go on with what it has")
    assert pool.terminate() == 0
    assert "keeps version 2: expected weights for observations and actions of sizes (3, 1), got (7, 2)" in pool.output
    assert [a.restarts for a in ledgers()] == [0]


def test_in_lock_step_a_turn_is_played_with_its_own_policy_or_not_at_all(
    start_actors: StartActors, state: RunStateStore, run_config: RunConfig, channel: WeightsChannel,
    redis_client: RedisClient, keys: Keys, make_policy_weights: MakePolicyWeights,
    ledgers: Callable[[], list[ActorLedger]], wait_until: WaitUntil,
) -> None:  # fmt: skip
    channel.publish(make_policy_weights(1), enter=Phase.ONLINE)
    pool = start_actors(run=replace(run_config, actors=1, lockstep=True, replay=ReplayConfig(capacity=200)))
    wait_until(lambda: state.read().env_steps == 20, "the first turn")
    redis_client.set(keys.weights, b"nothing that anybody could read")
    redis_client.hset(keys.run, mapping={"policy_version": 2, "online_grad_steps": 200})
    wait_until(lambda: "weights that it can use" in pool.output, "the actor to find out")
    time.sleep(1.5)
    assert state.read().env_steps == 20
    redis_client.hset(keys.run, "policy_version", 1)
    channel.publish(make_policy_weights(2, env_steps=20))
    wait_until(lambda: state.read().env_steps == 40, "the second turn")
    assert pool.terminate() == 0
    assert [a.restarts for a in ledgers()] == [0]


def test_in_lock_step_a_killed_actors_turn_is_finished_from_where_it_is_stored(
    start_actors: StartActors, online_state: RunStateStore, run_config: RunConfig, writer: TrajectoryWriter,
    channel: WeightsChannel, make_policy_weights: MakePolicyWeights, ledgers: Callable[[], list[ActorLedger]],
    trajectories: Callable[[], list[Trajectory]], wait_until: WaitUntil,
) -> None:  # fmt: skip
    run = replace(run_config, actors=1, lockstep=True, rollout_length=5, replay=ReplayConfig(capacity=200))
    channel.publish(make_policy_weights(1))
    environment = make_environment(run.env, max_episode_steps=20)
    whole = [
        trajectory
        for trajectory, _ in play_turn(
            environment, NumpyPolicy(make_policy_weights(1)), run_seed=run.seed, actor_id=0, epoch=writer.epoch,
            turn=0, steps=20, rollout_length=5, should_stop=lambda: False,
        )
    ]  # fmt: skip
    environment.close()
    for sequence, piece in enumerate(whole[:2]):  # and there the actor was killed
        writer.append(replace(piece, origin=replace(piece.origin, sequence=sequence)), want_steps=0)
    pool = start_actors(run=run)
    wait_until(lambda: [a.episodes for a in ledgers()] == [1], "the turn to be complete")
    assert pool.terminate() == 0, pool.output
    found = trajectories()
    assert [(t.origin.epoch, t.origin.sequence, t.origin.first_step) for t in found] == [
        (1, 0, 0), (1, 1, 5), (2, 0, 10), (2, 1, 15),
    ]  # fmt: skip
    assert (online_state.read().env_steps, ledgers()[0].duplicate_steps) == (20, 0)
    for stored, played in zip(found, whole, strict=True):
        for name in ("observations", "actions", "rewards"):
            assert getattr(stored, name).tobytes() == getattr(played, name).tobytes(), name


def test_an_actor_that_is_stopped_while_redis_is_gone_leaves_and_says_what_it_could_not_store(
    run_config: RunConfig, make_policy_weights: MakePolicyWeights, wait_until: WaitUntil, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("actors.actor._DELIVERY_AFTER_STOP_S", 0.5)
    shape = replace(run_config.environment, max_episode_steps=100_000)
    run = replace(run_config, environment=shape, rollout_length=100_000, num_env_steps=10**6,
                  max_env_steps_ahead=200_000, replay=ReplayConfig(capacity=100_000))  # fmt: skip
    server = EmbeddedRedis.start(tmp_path / "redis", server=find_server(), max_memory_mb=64)
    client, keys, stop = connect(server.endpoint), Keys(run.run_id), StopSignal()
    RunStateStore(client, keys).initialise(run)
    WeightsChannel(client, keys).publish(make_policy_weights(1), enter=Phase.ONLINE)
    client.close()
    actor = Actor(run, ActorConfig(), server.endpoint, actor_id=0, stop=stop)
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(actor.run)
        try:
            wait_until(lambda: actor._policy is not None or ended.done(), "the actor to act")
        finally:
            server.process.kill()
            server.process.wait()
            stop.set()
        ended.result(PATIENCE_S)
    actor._state._client.close()
    assert re.search(r"actor 0 leaves with [1-9]\d* steps that Redis did not take", caplog.text)
    assert "actor 0 left without saying goodbye: " in caplog.text
