from __future__ import annotations

import secrets
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from replay_service import scripts
from replay_service.config import EnvironmentConfig, ReplayConfig, RunConfig
from replay_service.experience import Origin, Trajectory
from replay_service.keys import Keys
from replay_service.rate_limiter import env_steps_allowed, updates_allowed
from replay_service.records import unaccounted_steps
from replay_service.redis_client import RedisClient
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunStateStore
from replay_service.trajectory_stream import Admission, TrajectoryWriter

if TYPE_CHECKING:
    from tests.conftest import MakeTrajectory

STEPS = st.integers(0, 100_000)
UTD_RATIOS = st.sampled_from([0.0005, 0.01, 0.1, 1 / 3, 0.5, 1.0, 1.5, 4.0, 20.0])


class TestFormula:
    @given(env_steps=STEPS, done=STEPS, utd_ratio=UTD_RATIOS, initial=STEPS)
    def test_the_learner_never_passes_its_side_of_the_band(
        self, env_steps: int, done: int, utd_ratio: float, initial: int
    ) -> None:
        allowed = updates_allowed(
            env_steps=env_steps, online_grad_steps=done, utd_ratio=utd_ratio, initial_env_steps=initial
        )
        rounding = 1e-6
        owed = Fraction(utd_ratio) * (env_steps - initial) - done
        assert allowed == 0 or 0 < allowed <= owed + rounding
        assert owed < allowed + 1 + rounding

    @given(done=STEPS, utd_ratio=UTD_RATIOS, initial=STEPS, tolerance=st.integers(1, 10_000))
    def test_the_actors_may_be_ahead_by_the_tolerance_and_no_more(
        self, done: int, utd_ratio: float, initial: int, tolerance: int
    ) -> None:
        allowed = env_steps_allowed(
            online_grad_steps=done, utd_ratio=utd_ratio, initial_env_steps=initial, tolerance=tolerance
        )
        paid_for = allowed - initial - tolerance
        assert paid_for * utd_ratio == pytest.approx(done, abs=utd_ratio)

    @given(env_steps=STEPS, utd_ratio=UTD_RATIOS, initial=STEPS, actors=st.integers(1, 64), rollout=st.integers(1, 500))
    def test_a_learner_that_has_caught_up_always_leaves_room_for_a_rollout(
        self, env_steps: int, utd_ratio: float, initial: int, actors: int, rollout: int
    ) -> None:
        """Otherwise both sides would wait for each other for ever."""
        caught_up = updates_allowed(
            env_steps=env_steps, online_grad_steps=0, utd_ratio=utd_ratio, initial_env_steps=initial
        )
        config = RunConfig(utd_ratio=utd_ratio, actors=actors, rollout_length=rollout)
        room = env_steps_allowed(
            online_grad_steps=caught_up,
            utd_ratio=utd_ratio,
            initial_env_steps=initial,
            tolerance=config.tolerance_env_steps,
        )
        assert room - env_steps >= rollout

    @pytest.mark.parametrize(
        ("env_steps", "done", "utd_ratio", "expected"),
        [
            (0, 0, 1.0, 0),
            (1000, 0, 1.0, 0),
            (1001, 0, 1.0, 1),
            (1001, 1, 1.0, 0),
            (1010, 3, 0.5, 2),
            (1003, 0, 4.0, 12),
        ],
    )
    def test_examples_worked_by_hand(self, env_steps: int, done: int, utd_ratio: float, expected: int) -> None:
        got = updates_allowed(env_steps=env_steps, online_grad_steps=done, utd_ratio=utd_ratio, initial_env_steps=1000)
        assert got == expected


@dataclass
class ModelActor:
    """What the model knows of one actor."""

    lease: int = 0
    stored: int = 0
    duplicates: int = 0
    sequence: int = 0


class LimiterMachine(RuleBasedStateMachine):
    """Several actors and a learner against the real scripts, with a model in plain integers beside them."""

    def __init__(self, client: RedisClient) -> None:
        super().__init__()
        self._client = client
        self._keys = Keys(f"limiter-{secrets.token_hex(8)}")
        self._state = RunStateStore(client, self._keys)
        self._reports = Reports(client, self._keys)
        self._release = client.register_script(scripts.source("release"))
        self._env_steps = self._online_grad_steps = 0
        self._is_online = False

    @initialize(
        actors=st.integers(1, 4),
        utd_ratio=UTD_RATIOS,
        budget=st.integers(0, 120),
        initial=st.integers(0, 150),
        rollout=st.integers(1, 12),
        spare=st.integers(0, 30),
    )
    def begin(self, actors: int, utd_ratio: float, budget: int, initial: int, rollout: int, spare: int) -> None:
        self._config = RunConfig(
            env="Model-v0",
            num_env_steps=budget,
            initial_env_steps=initial,
            utd_ratio=utd_ratio,
            rollout_length=rollout,
            max_env_steps_ahead=rollout + int(np.ceil(1 / utd_ratio)) + spare,
            environment=EnvironmentConfig(max_episode_steps=20, observation_dim=1, action_dim=1),
            replay=ReplayConfig(capacity=30),
        )
        self._state.initialise(self._config)
        self._state.set_phase(Phase.PRETRAINING)
        self._initial = min(initial, budget)
        self._actors = [ModelActor() for _ in range(actors)]
        self._writers = [
            TrajectoryWriter(self._client, self._keys, self._config.spec, actor_id=index) for index in range(actors)
        ]
        for writer in self._writers:
            writer.register()

    @precondition(lambda self: not self._is_online)
    @rule()
    def the_learner_goes_online(self) -> None:
        self._state.set_phase(Phase.ONLINE)
        self._is_online = True

    @rule(steps=st.integers(1, 40))
    def the_learner_updates(self, steps: int) -> None:
        self._online_grad_steps += min(steps, self._updates_allowed())
        self._client.hset(self._keys.run, "online_grad_steps", self._online_grad_steps)

    @rule(index=st.integers(0, 3), want=st.integers(0, 12))
    def an_actor_asks(self, index: int, want: int) -> None:
        index, want = index % len(self._actors), min(want, self._config.rollout_length)
        self._check_admission(self._writers[index].request(want), index, want)

    @rule(index=st.integers(0, 3), share=st.floats(0, 1), want=st.integers(0, 12))
    def an_actor_appends(self, index: int, share: float, want: int) -> None:
        index %= len(self._actors)
        steps = int(np.ceil(share * self._actors[index].lease))
        if steps > 0:
            self._append(index, steps, min(want, self._config.rollout_length))

    @rule(index=st.integers(0, 3), want=st.integers(0, 12))
    def an_answer_is_lost_and_the_message_sent_again(self, index: int, want: int) -> None:
        index, want = index % len(self._actors), min(want, self._config.rollout_length)
        actor = self._actors[index]
        if actor.sequence == 0:
            return
        admission = self._writers[index].append(self._trajectory(index, actor.sequence - 1, 1), want_steps=want)
        actor.duplicates += 1
        assert admission.duplicate
        self._check_admission(admission, index, want)

    @rule(index=st.integers(0, 3))
    def an_actor_is_replaced(self, index: int) -> None:
        index %= len(self._actors)
        self._writers[index].register(replaces_crashed=True)
        self._actors[index].lease = self._actors[index].sequence = 0

    @rule(index=st.integers(0, 3))
    def an_actor_leaves(self, index: int) -> None:
        index %= len(self._actors)
        assert self._writers[index].release() == self._actors[index].lease
        self._actors[index].lease = 0

    @rule(index=st.integers(0, 3), is_silent=st.booleans())
    def the_service_looks_for_silent_actors(self, index: int, is_silent: bool) -> None:
        index %= len(self._actors)
        silence_ms = 0 if is_silent else 3_600_000
        given_back = self._release(keys=[self._keys.counters, self._keys.actor(index)], args=[silence_ms])
        assert given_back == (self._actors[index].lease if is_silent else 0)
        self._actors[index].lease -= given_back

    @invariant()
    def neither_band_nor_budget_is_passed(self) -> None:
        state = self._state.read()
        assert state.env_steps + state.leased_steps <= state.num_env_steps
        assert state.env_steps + state.leased_steps <= self._steps_allowed()

    @invariant()
    def the_counters_are_those_of_the_model(self) -> None:
        state, ledgers = self._state.read(), self._reports.actors()
        assert [ledger.lease for ledger in ledgers] == [actor.lease for actor in self._actors]
        assert [ledger.stored_steps for ledger in ledgers] == [actor.stored for actor in self._actors]
        assert [ledger.duplicate_steps for ledger in ledgers] == [actor.duplicates for actor in self._actors]
        assert state.leased_steps == sum(actor.lease for actor in self._actors)
        assert state.env_steps == self._env_steps
        assert state.duplicate_steps == sum(actor.duplicates for actor in self._actors)
        assert unaccounted_steps(state, ledgers) == 0

    def teardown(self) -> None:
        """From wherever the walk ended, a learner that keeps up and willing actors spend the budget exactly."""
        if not hasattr(self, "_config"):
            return
        self._state.set_phase(Phase.ONLINE)
        self._is_online = True
        for _ in range(2 * self._config.num_env_steps + 1):
            if self._env_steps == self._config.num_env_steps:
                break
            for index, actor in enumerate(self._actors):
                self.the_learner_updates(self._updates_allowed())
                self.an_actor_asks(index, self._config.rollout_length)
                if actor.lease:
                    self._append(index, actor.lease, 0)
        assert self._state.read().env_steps == self._config.num_env_steps
        assert self._state.read().leased_steps == 0

    def _append(self, index: int, steps: int, want: int) -> None:
        actor = self._actors[index]
        admission = self._writers[index].append(self._trajectory(index, actor.sequence, steps), want_steps=want)
        actor.sequence += 1
        actor.lease -= steps
        actor.stored += steps
        self._env_steps += steps
        assert not admission.duplicate
        self._check_admission(admission, index, want)

    def _check_admission(self, admission: Admission, index: int, want: int) -> None:
        """The answer is what the band and the budget allow; the model takes it over."""
        actor = self._actors[index]
        missing = max(0, want - actor.lease)
        taken = self._env_steps + sum(one.lease for one in self._actors)
        from_budget = min(missing, self._config.num_env_steps - taken)
        if not self._is_online:
            expected, reason = 0, "phase"
        elif missing == 0:
            expected, reason = 0, ""
        elif from_budget <= 0:
            expected, reason = 0, "budget"
        elif from_budget > self._steps_allowed() - taken:
            expected, reason = 0, "limiter"
        else:
            expected, reason = from_budget, ""
        actor.lease += expected
        assert (admission.lease_steps, admission.wait_reason) == (actor.lease, reason)

    def _updates_allowed(self) -> int:
        return updates_allowed(
            env_steps=self._env_steps,
            online_grad_steps=self._online_grad_steps,
            utd_ratio=self._config.utd_ratio,
            initial_env_steps=self._initial,
        )

    def _steps_allowed(self) -> int:
        return env_steps_allowed(
            online_grad_steps=self._online_grad_steps,
            utd_ratio=self._config.utd_ratio,
            initial_env_steps=self._initial,
            tolerance=self._config.tolerance_env_steps,
        )

    def _trajectory(self, index: int, sequence: int, steps: int) -> Trajectory:
        zeros = np.zeros((steps + 1, 1), dtype=np.float32)
        origin = Origin(index, self._writers[index].epoch, sequence, 1, 0, 0)
        return Trajectory(zeros, zeros[1:], zeros[1:, 0], False, False, origin)


def test_no_order_of_events_breaks_the_limiter(redis_client: RedisClient) -> None:
    class Machine(LimiterMachine):
        def __init__(self) -> None:
            super().__init__(redis_client)

    run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=30))


class TestAdmission:
    """The run has a budget of 200 steps, 20 initial ones, a band of 40 and a ratio of 1."""

    @pytest.mark.parametrize(
        ("phase", "env_steps", "reason"),
        [
            (Phase.SEEDING, 0, "phase"),
            (Phase.PRETRAINING, 0, "phase"),
            (Phase.FINISHED, 200, "budget"),
            (Phase.FINISHED, 150, "phase"),  # the budget has grown, and the learner is not there yet
        ],
    )
    def test_only_the_online_phase_admits(
        self, writer: TrajectoryWriter, state: RunStateStore, redis_client: RedisClient, keys: Keys,
        phase: Phase, env_steps: int, reason: str,
    ) -> None:  # fmt: skip
        state.set_phase(phase)
        redis_client.hset(keys.counters, "env_steps", env_steps)
        assert writer.request(10) == Admission(policy_version=0, lease_steps=0, wait_reason=reason)
        redis_client.hset(keys.counters, "env_steps", 0)
        state.set_phase(Phase.ONLINE)
        assert writer.request(10) == Admission(policy_version=0, lease_steps=10, wait_reason="")

    def test_asking_again_gives_nothing_twice(self, writer: TrajectoryWriter, state: RunStateStore) -> None:
        assert [writer.request(10).lease_steps for _ in range(3)] == [10, 10, 10]
        assert state.read().leased_steps == 10

    def test_an_actor_at_the_edge_of_the_band_waits_until_the_learner_moves(
        self, writer: TrajectoryWriter, redis_client: RedisClient, keys: Keys, make_trajectory: MakeTrajectory
    ) -> None:
        for sequence in range(6):
            assert writer.request(10).lease_steps == 10
            writer.append(make_trajectory(sequence, steps=10), want_steps=0)
        assert writer.request(10) == Admission(policy_version=0, lease_steps=0, wait_reason="limiter")
        redis_client.hset(keys.run, "online_grad_steps", 9)
        assert writer.request(10).wait_reason == "limiter"
        redis_client.hset(keys.run, "online_grad_steps", 10)
        assert writer.request(10).lease_steps == 10

    def test_the_last_lease_is_cut_to_what_the_budget_has_left(
        self, writer: TrajectoryWriter, redis_client: RedisClient, keys: Keys
    ) -> None:
        redis_client.hset(keys.counters, "env_steps", 193)
        redis_client.hset(keys.run, "online_grad_steps", 173)
        assert writer.request(10) == Admission(policy_version=0, lease_steps=7, wait_reason="")
        assert writer.request(10) == Admission(policy_version=0, lease_steps=7, wait_reason="budget")

    def test_a_short_trajectory_keeps_the_rest_of_its_lease(
        self, writer: TrajectoryWriter, state: RunStateStore, make_trajectory: MakeTrajectory
    ) -> None:
        writer.request(10)
        assert writer.append(make_trajectory(0, steps=4), want_steps=0).lease_steps == 6
        assert state.read().leased_steps == 6

    def test_steps_whose_lease_had_lapsed_are_stored_all_the_same(
        self,
        writer: TrajectoryWriter,
        state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        make_trajectory: MakeTrajectory,
    ) -> None:
        """Steps that were taken are never thrown away, even if an actor was out of reach for longer than its lease."""
        writer.request(10)
        release = redis_client.register_script(scripts.source("release"))
        assert release(keys=[keys.counters, keys.actor(0)], args=[0]) == 10
        writer.append(make_trajectory(0, steps=10), want_steps=0)
        assert (state.read().env_steps, state.read().leased_steps) == (10, 0)

    @pytest.mark.parametrize("sign_of_life", ["none", "request", "append", "duplicate"])
    def test_an_actor_keeps_its_lease_as_long_as_it_is_heard_of(
        self,
        writer: TrajectoryWriter,
        redis_client: RedisClient,
        keys: Keys,
        make_trajectory: MakeTrajectory,
        sign_of_life: str,
    ) -> None:
        writer.append(make_trajectory(0), want_steps=10)
        redis_client.hset(keys.actor(0), "last_seen_ms", 0)
        if sign_of_life == "request":
            writer.request(10)
        elif sign_of_life != "none":
            writer.append(make_trajectory(1 if sign_of_life == "append" else 0), want_steps=10)
        release = redis_client.register_script(scripts.source("release"))
        given_back = release(keys=[keys.counters, keys.actor(0)], args=[3_600_000])
        assert given_back == (10 if sign_of_life == "none" else 0)
