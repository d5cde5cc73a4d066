"""What each role may do in the embedded Redis, tried with its own credential on a real server."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from replay_service import scripts
from replay_service.access import Role, role_endpoint, users_file
from replay_service.config import RunConfig
from replay_service.connection import RedisEndpoint, connect
from replay_service.experience import ExperienceSpec
from replay_service.keys import Keys
from replay_service.redis_server import EmbeddedRedis, find_server
from replay_service.reports import Evaluation, LearnerReport, Reports
from replay_service.run_state import Phase, RunStateStore
from replay_service.seeding import seed
from replay_service.trajectory_stream import BadEntry, EpisodeOutcome, Quarantine, TrajectoryReader, TrajectoryWriter
from replay_service.weights_channel import EvaluationRequests, WeightsChannel
from tests.faults import wait_until_written

if TYPE_CHECKING:
    from tests.conftest import MakePolicyWeights, MakeTrajectory

RUN_ID = "run of Jörg's [a*b] (1)"
"""A name that a directory may have; half of it means something in a glob or in the user file."""

EVALUATION = Evaluation(
    policy_version=1, env_steps=0, grad_steps=0, success_any=None, success_final=None, success_fraction=None,
    episode_return=0.0, episode_length=1.0, episodes=1, seconds=0.1, unix_seconds=1.0,
)  # fmt: skip


@pytest.fixture(scope="module", params=["on the PATH", "packaged"])
def binary(request: pytest.FixtureRequest) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "packaged":
            patch.setenv("PATH", "")
        return find_server()


@pytest.fixture(scope="module")
def server(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    running = EmbeddedRedis.start(tmp_path_factory.mktemp("redis"), server=binary, max_memory_mb=64, run_id=RUN_ID)
    yield running
    running.stop()


@pytest.fixture
def keys() -> Keys:
    return Keys(RUN_ID)


As = Callable[[Role], Any]


@pytest.fixture
def as_role(server: EmbeddedRedis) -> Iterator[As]:
    """Connect with a role's credential; Any, because hostile commands are none that the project's types know."""
    clients = {role: connect(role_endpoint(server.endpoint, role)) for role in Role}
    yield clients.__getitem__
    for client in clients.values():
        client.close()


@pytest.fixture
def admin(server: EmbeddedRedis) -> Iterator[Any]:
    client = connect(server.endpoint)
    yield client
    client.close()


@pytest.fixture
def run_config(run_config: RunConfig, admin: Any) -> Iterator[RunConfig]:
    yield run_config
    admin.flushall()


@pytest.fixture
def state(as_role: As, keys: Keys, run_config: RunConfig) -> RunStateStore:
    """The run, opened by the replay service and brought online by the learner, each with its own credential."""
    store = RunStateStore(as_role(Role.REPLAY), keys)
    store.initialise(run_config)
    seed(as_role(Role.REPLAY), keys, None)
    RunStateStore(as_role(Role.LEARNER), keys).set_phase(Phase.ONLINE)
    return store


def refused(act: Callable[[], object]) -> None:
    """The server says no, and says that it is for want of rights: to a command, to a key, or inside a script."""
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|can't access|can't run|not allowed"):
        act()


class TestEachRoleCanDoItsWork:
    def test_an_actor(self, as_role: As, keys: Keys, state: RunStateStore, spec: ExperienceSpec,
                      make_trajectory: MakeTrajectory, make_policy_weights: MakePolicyWeights) -> None:  # fmt: skip
        WeightsChannel(as_role(Role.LEARNER), keys).publish(make_policy_weights(1))
        client = as_role(Role.ACTOR)
        client.script_load("return 1")
        store, writer = RunStateStore(client, keys), TrajectoryWriter(client, keys, spec, actor_id=3)
        store.publish_endpoint("actor-3", "127.0.0.1:1")
        writer.register(replaces_crashed=True)
        assert writer.request(10).lease_steps == 10
        outcome = EpisodeOutcome(episode_return=-1.0, success=True)
        for sequence in range(30):  # beyond the capacity of 100 steps, so that old ones are evicted
            trajectory = make_trajectory(sequence, actor_id=3)
            assert not writer.append(trajectory, want_steps=5, outcome=outcome).duplicate
        assert writer.append(trajectory, want_steps=5).duplicate
        assert client.hget(keys.run, "phase") == b"online"
        weights = WeightsChannel(client, keys).fetch()
        assert weights is not None
        assert weights.version == 1
        writer.release()
        store.withdraw_endpoint("actor-3")
        assert (state.read().env_steps, state.read().retained_steps) == (150, 100)

    def test_the_evaluator(self, as_role: As, keys: Keys, state: RunStateStore,
                           make_policy_weights: MakePolicyWeights) -> None:  # fmt: skip
        WeightsChannel(as_role(Role.LEARNER), keys).publish(make_policy_weights(1), evaluated=make_policy_weights(1))
        client = as_role(Role.EVALUATOR)
        RunStateStore(client, keys).publish_endpoint("evaluator", "127.0.0.1:1")
        reports = Reports(client, keys)
        assert reports.last_judged_request() == "0-0"
        requests = EvaluationRequests(client, keys)
        request = requests.next(block_ms=1)
        assert request is not None
        assert not requests.lost(request.request_id)
        assert requests.lost("1-1")
        reports.add_evaluation(EVALUATION, request_id=request.request_id)
        as_role(Role.LEARNER).hincrby(keys.run, "evaluations_requested", 1)  # of a request that a full queue dropped
        assert reports.settle_evaluations(read_to=request.request_id, last_judged=request.request_id) == 1
        RunStateStore(client, keys).withdraw_endpoint("evaluator")
        assert state.read().evaluations_done == 2

    def test_the_learner(self, as_role: As, keys: Keys, state: RunStateStore, spec: ExperienceSpec,
                         make_trajectory: MakeTrajectory, make_policy_weights: MakePolicyWeights) -> None:  # fmt: skip
        writer = TrajectoryWriter(as_role(Role.ACTOR), keys, spec, actor_id=0)
        writer.register()
        writer.append(make_trajectory(0), want_steps=0)
        client = as_role(Role.LEARNER)
        (entry,) = TrajectoryReader(client, keys.online, spec).read()
        assert list(TrajectoryReader(client, keys.seed, spec).read()) == []
        assert Quarantine(client, keys).put(BadEntry(entry.entry_id, 0, "a try")) == 5
        channel = WeightsChannel(client, keys)
        channel.request_evaluation(make_policy_weights(0))
        channel.publish(make_policy_weights(1), evaluated=make_policy_weights(1), enter=Phase.FINISHED)
        Reports(client, keys).add_learner_report(LearnerReport(1, 2, 3.0, {}))
        store = RunStateStore(client, keys)
        store.publish_endpoint("learner", "127.0.0.1:1")
        store.withdraw_endpoint("learner")
        assert store.env_steps() == 0
        assert store.read().phase is Phase.FINISHED

    def test_the_replay_service(self, as_role: As, keys: Keys, state: RunStateStore, spec: ExperienceSpec) -> None:
        writer = TrajectoryWriter(as_role(Role.ACTOR), keys, spec, actor_id=0)
        writer.register()
        writer.request(10)
        client = as_role(Role.REPLAY)
        release = client.register_script(scripts.source("release"))
        assert release(keys=[keys.counters, keys.actor(0)], args=[0]) == 10
        reports = Reports(client, keys)
        assert [actor.actor_id for actor in reports.actors()] == [0]
        assert list(reports.evaluations()) == [] == list(reports.learner_reports())
        assert client.info("memory")["used_memory"] > 0
        assert state.endpoints() == {}
        assert state.read().phase is Phase.ONLINE


FORBIDDEN_TO_ALL: dict[str, tuple[object, ...]] = {
    "flush everything": ("FLUSHALL",),
    "flush the database": ("FLUSHDB",),
    "list the keys": ("KEYS", "*"),
    "scan the keys": ("SCAN", "0"),
    "shut the server down": ("SHUTDOWN", "NOSAVE"),
    "read the configuration": ("CONFIG", "GET", "*"),
    "write a file": ("CONFIG", "SET", "dir", "/tmp"),
    "debug": ("DEBUG", "SLEEP", "0"),
    "read the users": ("ACL", "LIST"),
    "make a user": ("ACL", "SETUSER", "eve", "on"),
    "end another's connection": ("CLIENT", "KILL", "TYPE", "normal"),
    "watch the others": ("MONITOR",),
    "run a script that it brings along": ("EVAL", "return 1", "0"),
    "load a library": ("FUNCTION", "LOAD", "#!lua name=x"),
    "forget the scripts": ("SCRIPT", "FLUSH"),
    "load a module": ("MODULE", "LIST"),
    "follow another server": ("REPLICAOF", "192.0.2.1", "6379"),
    "send the data elsewhere": ("MIGRATE", "192.0.2.1", "6379", "x", "0", "1"),
    "rewrite the log": ("BGREWRITEAOF",),
    "speak to others": ("PUBLISH", "a", "b"),
}


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("command", FORBIDDEN_TO_ALL.values(), ids=FORBIDDEN_TO_ALL.keys())
def test_no_role_may(as_role: As, role: Role, command: tuple[object, ...]) -> None:
    refused(lambda: as_role(role).execute_command(*command))


@pytest.mark.parametrize("role", list(Role))
def test_no_role_reaches_another_run(as_role: As, admin: Any, role: Role) -> None:
    for other in (Keys("other"), Keys(RUN_ID + "2"), Keys("run of Jörg's [aXb] (1)"), Keys("x}:" + RUN_ID)):
        admin.hset(other.run, "phase", "online")
        client = as_role(role)
        refused(partial(client.hget, other.run, "phase"))
        refused(partial(client.hset, other.endpoints, "a", "b"))
        refused(partial(client.xadd, other.online, {"m": "x"}))
        admin.delete(other.run)


class TestAnActorMayNot:
    @pytest.fixture
    def actor(self, as_role: As, state: RunStateStore) -> Any:
        return as_role(Role.ACTOR)

    def test_publish_weights(self, actor: Any, keys: Keys, make_policy_weights: MakePolicyWeights) -> None:
        refused(lambda: WeightsChannel(actor, keys).publish(make_policy_weights(1)))
        for command in (("SET", keys.weights, "x"), ("APPEND", keys.weights, "x"), ("DEL", keys.weights)):
            refused(partial(actor.execute_command, *command))

    def test_change_the_run_s_state(self, actor: Any, keys: Keys, state: RunStateStore) -> None:
        before = state.read()
        refused(lambda: RunStateStore(actor, keys).set_phase(Phase.FINISHED))
        refused(lambda: RunStateStore(actor, keys).request_stop("mischief"))
        refused(lambda: actor.hincrby(keys.run, "policy_version", 5))
        refused(lambda: actor.hincrby(keys.run, "num_env_steps", 5))
        refused(lambda: actor.hdel(keys.run, "phase"))
        refused(lambda: actor.delete(keys.run))
        assert state.read() == before

    def test_do_in_a_script_what_it_may_not_do_itself(self, actor: Any, keys: Keys, state: RunStateStore) -> None:
        before = state.read()
        for text in (
            "return redis.call('HSET', KEYS[1], 'phase', 'finished')",
            "return redis.call('HINCRBY', KEYS[1], 'policy_version', 9)",
            "return redis.call('SET', KEYS[1] .. 'x', '1')",
            "return redis.call('FLUSHALL')",
            "return redis.call('CONFIG', 'GET', '*')",
        ):
            refused(partial(actor.register_script(text), keys=[keys.run], args=[]))
        assert state.read() == before

    def test_read_the_seed_data_or_write_what_others_report(self, actor: Any, keys: Keys) -> None:
        refused(lambda: actor.xrange(keys.seed))
        refused(lambda: actor.hget(keys.seed_info, "steps"))
        for name in (keys.seed, keys.evaluations, keys.evaluation_requests, keys.learner_reports, keys.quarantine):
            refused(partial(actor.xadd, name, {"json": "{}"}))
        refused(lambda: actor.hincrby(keys.evaluation_counters, "evaluations_done", 1))

    def test_put_a_key_of_another_kind_in_the_place_of_one(self, actor: Any, keys: Keys) -> None:
        refused(lambda: actor.xadd(keys.actor(7), {"x": "y"}))
        refused(lambda: actor.xadd(keys.counters, {"x": "y"}))
        refused(lambda: actor.hset(keys.online, "a", "b"))
        refused(lambda: actor.hset(keys.actors, "a", "b"))
        refused(lambda: actor.sadd(keys.counters, "7"))
        refused(lambda: actor.sadd(keys.actor(7), "7"))

    def test_empty_the_stream_at_one_blow(self, actor: Any, keys: Keys) -> None:
        for command in (("DEL", keys.online), ("UNLINK", keys.online), ("XTRIM", keys.online, "MAXLEN", "0"),
                        ("EXPIRE", keys.online, "1"), ("RENAME", keys.online, keys.actors)):  # fmt: skip
            refused(partial(actor.execute_command, *command))


class TestTheEvaluatorMayNot:
    def test_write_experience_weights_or_state(
        self, as_role: As, keys: Keys, state: RunStateStore, make_policy_weights: MakePolicyWeights
    ) -> None:
        evaluator, before = as_role(Role.EVALUATOR), state.read()
        refused(lambda: evaluator.xadd(keys.online, {"m": "x"}))
        refused(lambda: WeightsChannel(evaluator, keys).publish(make_policy_weights(1)))
        refused(lambda: evaluator.set(keys.weights, "x"))
        refused(lambda: evaluator.hset(keys.run, "phase", "finished"))
        refused(lambda: evaluator.hincrby(keys.counters, "env_steps", 1))
        refused(lambda: evaluator.xread({keys.online: "0-0"}))
        assert state.read() == before


def test_the_learner_may_not_touch_the_seed_data(as_role: As, keys: Keys, state: RunStateStore) -> None:
    refused(lambda: as_role(Role.LEARNER).xadd(keys.seed, {"m": "x"}))
    refused(lambda: as_role(Role.LEARNER).hset(keys.seed_info, "steps", 1))


class TestCredentials:
    def test_each_role_has_its_own_and_none_opens_another_s_door(self, server: EmbeddedRedis) -> None:
        endpoints = [server.endpoint, *(role_endpoint(server.endpoint, role) for role in Role)]
        assert len({endpoint.password for endpoint in endpoints}) == 5
        for holder in endpoints:
            for door in endpoints:
                client = connect(RedisEndpoint(door.url, holder.password))
                if holder == door:
                    assert client.ping()
                else:
                    with pytest.raises(redis.exceptions.AuthenticationError):
                        client.ping()
                client.close()

    def test_the_user_file_holds_no_password(self, server: EmbeddedRedis) -> None:
        text = users_file(server.endpoint, RUN_ID)
        for endpoint in (server.endpoint, *(role_endpoint(server.endpoint, role) for role in Role)):
            assert endpoint.password not in text

    def test_they_hold_after_redis_was_killed_and_what_was_written_is_there(
        self, binary: Path, tmp_path: Path, run_config: RunConfig, spec: ExperienceSpec, make_trajectory: MakeTrajectory
    ) -> None:
        keys = Keys(RUN_ID)
        first = EmbeddedRedis.start(tmp_path, server=binary, max_memory_mb=64, run_id=RUN_ID)
        clients = {role: connect(role_endpoint(first.endpoint, role)) for role in Role}
        store = RunStateStore(clients[Role.REPLAY], keys)
        store.initialise(run_config)
        store.set_phase(Phase.ONLINE)
        writer = TrajectoryWriter(clients[Role.ACTOR], keys, spec, actor_id=0)
        writer.register()
        writer.append(make_trajectory(0), want_steps=5)
        before = store.read()
        admin = connect(first.endpoint)
        wait_until_written(admin)
        admin.close()
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        again = EmbeddedRedis.start(tmp_path, server=binary, max_memory_mb=64, previous=first.endpoint, run_id=RUN_ID)
        try:
            assert writer.append(make_trajectory(0), want_steps=5).duplicate
            assert not writer.append(make_trajectory(1), want_steps=5).duplicate
            after = store.read()
            assert (after.env_steps, before.env_steps) == (10, 5)
        finally:
            for client in clients.values():
                client.close()
            again.stop()
