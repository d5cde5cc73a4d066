"""The learner's process against a real Redis: phases, the limiter, bad messages, stop and resume in every phase."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import tomli_w
import torch

from learner.checkpoint import CheckpointStore, Progress
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.mirror import TransitionBatch
from learner.networks import PublicationStamp, export_policy
from learner.update import LearnerState, UpdateMetrics, gradient_step, make_state
from replay_service import wire
from replay_service.config import EnvironmentConfig, ReplayConfig, RunConfig
from replay_service.connection import RedisEndpoint
from replay_service.datasets import Episode, OfflineDataset
from replay_service.errors import CheckpointError, DatasetError
from replay_service.experience import Origin, Trajectory
from replay_service.keys import Keys
from replay_service.policy_weights import PolicyWeights
from replay_service.process import StopSignal
from replay_service.rate_limiter import env_steps_allowed, updates_allowed
from replay_service.records import unaccounted_steps
from replay_service.redis_client import RedisClient
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunState, RunStateStore
from replay_service.seeding import seed
from replay_service.trajectory_stream import BadEntry, TrajectoryWriter
from replay_service.weights_channel import WeightsChannel

CPU = torch.device("cpu")
CONFIG = LearnerConfig(
    policy_hidden_sizes=(8,),
    critic_hidden_sizes=(8,),
    batch_size=16,
    offline_batch_size=8,
    publish_every_grad_steps=10,
    evaluate_every_env_steps=0,
    report_every_s=0.2,
    threads=1,
)
EPISODE_STEPS = 20
SEED_REWARD = -1.0
"""Of every offline step; the online ones pay another."""

WaitUntil = Callable[[Callable[[], bool], str], None]


@pytest.fixture
def run_config(keys: Keys) -> RunConfig:
    return RunConfig(
        env="synthetic",
        dataset=("none",),
        num_offline_steps=30,
        num_env_steps=120,
        initial_env_steps=20,
        max_env_steps_ahead=30,
        rollout_length=10,
        run_id=keys.run_id,
        environment=EnvironmentConfig(max_episode_steps=EPISODE_STEPS, observation_dim=3, action_dim=2),
        replay=ReplayConfig(capacity=1_000, evict_seed=False),
    )


@pytest.fixture
def seeded_state(state: RunStateStore, redis_client: RedisClient, keys: Keys) -> RunStateStore:
    """The run as the replay service opens it: seeded, in phase `pretraining`."""
    seed(redis_client, keys, offline_data())
    state.set_phase(Phase.PRETRAINING)
    return state


def offline_data() -> OfflineDataset:
    draw = np.random.default_rng(0)
    episodes = tuple(
        Episode(
            observations=draw.standard_normal((EPISODE_STEPS + 1, 3), dtype=np.float32),
            actions=draw.uniform(-1, 1, (EPISODE_STEPS, 2)).astype(np.float32),
            rewards=np.full(EPISODE_STEPS, SEED_REWARD, dtype=np.float32),
            terminated=False,
            truncated=True,
        )
        for _ in range(3)
    )
    return OfflineDataset(episodes=episodes, sources=("synthetic",))


class RunningLearner:
    """A learner in a thread, with a stop signal of its own."""

    def __init__(self, learner: Learner, stop: StopSignal) -> None:
        self.learner = learner
        self.stop_signal = stop
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.learner.run()
        except Exception as error:
            self.error = error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait for its end; raises what it raised."""
        self._thread.join(60.0)
        assert not self.is_alive, "the learner did not end"
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Ask for an orderly end, and wait for it."""
        self.stop_signal.set()
        self.join()


StartLearner = Callable[..., RunningLearner]


@pytest.fixture
def start_learner(redis_endpoint: RedisEndpoint, run_config: RunConfig, tmp_path: Path) -> Iterator[StartLearner]:
    """Start learners of the run; all share one checkpoint folder, and none outlives the test."""
    started: list[RunningLearner] = []

    def start(
        *,
        run: RunConfig = run_config,
        config: LearnerConfig = CONFIG,
        stop_at_grad_step: int | None = None,
        checkpoint_dir: Path = tmp_path / "checkpoints",
        prepare: Callable[[Learner], None] = lambda _: None,
    ) -> RunningLearner:
        stop = StopSignal() if stop_at_grad_step is None else StopAtGradStep(stop_at_grad_step)
        learner = Learner(run, config, redis_endpoint, checkpoint_dir=checkpoint_dir, device=CPU, stop=stop)
        if isinstance(stop, StopAtGradStep):
            stop.state = learner._state
        prepare(learner)
        started.append(RunningLearner(learner, stop))
        return started[-1]

    yield start
    for running in started:
        running.stop_signal.set()
        running._thread.join(60.0)
        running.learner._client.close()


class StopAtGradStep(StopSignal):
    """A stop that comes exactly when so many gradient steps have been done."""

    def __init__(self, grad_step: int) -> None:
        super().__init__()
        self._grad_step = grad_step
        self.state: LearnerState | None = None

    def is_set(self) -> bool:
        if self.state is not None and self.state.grad_steps >= self._grad_step:
            self.set()
        return super().is_set()


class SyntheticActor:
    """An actor whose environment is a random generator: it asks for steps, and stores what it is admitted for."""

    def __init__(self, client: RedisClient, run: RunConfig, *, actor_id: int = 0) -> None:
        self._run = run
        self._writer = TrajectoryWriter(client, Keys(run.run_id), run.spec, actor_id=actor_id)
        self._writer.register()
        self._draw = np.random.default_rng(self._writer.epoch)
        self._sequence = 0

    def request(self) -> int:
        """Steps that it may store now."""
        return self._writer.request(self._run.rollout_length).lease_steps

    def append(self, steps: int, *, broken: bool = False) -> None:
        rewards = np.full(steps, np.nan if broken else -0.5, dtype=np.float32)
        trajectory = Trajectory(
            observations=self._draw.standard_normal((steps + 1, 3), dtype=np.float32),
            actions=self._draw.uniform(-1, 1, (steps, 2)).astype(np.float32),
            rewards=rewards,
            terminated=False,
            truncated=False,
            origin=Origin(0, self._writer.epoch, self._sequence, 1, 0, 0),
        )
        self._writer.append(trajectory, want_steps=0)
        self._sequence += 1


class Drive:
    """Acts until the run is finished, and looks at both sides of the limiter after every step."""

    def __init__(self, client: RedisClient, run: RunConfig, wait_until: WaitUntil) -> None:
        self._client = client
        self._run = run
        self._wait_until = wait_until
        self._store = RunStateStore(client, Keys(run.run_id))
        self.actor = SyntheticActor(client, run)
        self.last_state = self._store.read()

    def until_finished(self, learner: RunningLearner) -> RunState:
        return self.until(learner, lambda state: state.phase is Phase.FINISHED)

    def until_stopped(self, learner: RunningLearner) -> None:
        def step() -> bool:
            self.act()
            return not learner.is_alive

        self._wait_until(step, "the learner to stop")

    def until(self, learner: RunningLearner, done: Callable[[RunState], bool]) -> RunState:
        def step() -> bool:
            self.act()
            self.last_state = self._checked_state()
            assert learner.is_alive, f"the learner ended: {learner.error}"
            return done(self.last_state)

        self._wait_until(step, "the run to go on")
        return self.last_state

    def act(self) -> None:
        """Store whatever the limiter admits now."""
        lease = self.actor.request()
        if lease:
            self.actor.append(lease)

    def _checked_state(self) -> RunState:
        run, state = self._run, self._store.read()
        owed = updates_allowed(
            env_steps=state.env_steps,
            online_grad_steps=0,
            utd_ratio=run.utd_ratio,
            initial_env_steps=run.initial_env_steps,
        )
        assert state.online_grad_steps <= owed
        assert state.env_steps + state.leased_steps <= env_steps_allowed(
            online_grad_steps=state.online_grad_steps,
            utd_ratio=run.utd_ratio,
            initial_env_steps=run.initial_env_steps,
            tolerance=run.tolerance_env_steps,
        )
        return state


DriveRun = Callable[[RunConfig], Drive]


@pytest.fixture
def drive(redis_client: RedisClient, wait_until: WaitUntil) -> DriveRun:
    return lambda run: Drive(redis_client, run, wait_until)


def weights_digest(policy: PolicyWeights | None) -> str:
    assert policy is not None
    arrays = (*policy.weights, *policy.biases, policy.log_std)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def saved(run: RunConfig, folder: Path) -> tuple[Progress, str]:
    """Progress and policy digest of the newest checkpoint."""
    state = make_state(CONFIG, run.spec, seed=12345, device=CPU)
    progress = CheckpointStore(folder, spec=run.spec, config=CONFIG).restore(state)
    assert progress is not None
    return progress, weights_digest(export_policy(state.policy, PublicationStamp(1, 0, 0, 0.0)))


def evaluation_requests(client: RedisClient, keys: Keys) -> list[PolicyWeights]:
    return [wire.decode_policy_weights(fields[b"m"]) for _, fields in client.xrange(keys.evaluation_requests)]


def count_reports(client: RedisClient, keys: Keys) -> int:
    """Reports so far; a finished learner adds one when it is up."""
    return len(list(Reports(client, keys).learner_reports()))


def wait_for_phase(state: RunStateStore, phase: Phase, wait_until: WaitUntil) -> None:
    wait_until(lambda: state.read().phase is phase, f"phase {phase}")


class TestPhases:
    @pytest.mark.parametrize("utd_ratio", [1.0, 0.3, 2.5])
    def test_a_run_from_seeding_to_the_end_of_its_budget(
        self,
        state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        run_config: RunConfig,
        start_learner: StartLearner,
        drive: DriveRun,
        utd_ratio: float,
    ) -> None:
        run = replace(run_config, utd_ratio=utd_ratio)
        state.initialise(run)
        learner = start_learner(run=run)
        driving = drive(run)
        assert driving.actor.request() == 0  # nobody acts before the offline phase is done
        assert state.read().policy_version == 0

        seed(redis_client, keys, offline_data())
        state.set_phase(Phase.PRETRAINING)
        online = driving.until(learner, lambda s: s.env_steps > 0)
        assert online.phase is Phase.ONLINE
        assert online.grad_steps >= run.num_offline_steps
        assert online.policy_version >= 1

        finished = driving.until_finished(learner)
        learner.stop()
        owed = math.floor(utd_ratio * (run.num_env_steps - run.initial_env_steps))
        final = state.read()
        assert (final.env_steps, final.online_grad_steps) == (run.num_env_steps, owed)
        assert final.grad_steps == run.num_offline_steps + owed
        assert finished.policy_version == final.policy_version == 1 + owed // 10 + 1  # offline, each ten steps, last

        requests = evaluation_requests(redis_client, keys)
        assert [r.version for r in requests] == [0, 1, final.policy_version]
        assert [r.grad_steps for r in requests] == [0, run.num_offline_steps, final.grad_steps]
        assert [r.env_steps for r in requests] == [0, 0, run.num_env_steps]
        assert weights_digest(WeightsChannel(redis_client, keys).fetch()) == weights_digest(requests[-1])
        assert len({weights_digest(r) for r in requests}) == 3

    def test_versions_between_are_evaluated_when_their_environment_steps_have_come(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun,
    ) -> None:  # fmt: skip
        config = replace(CONFIG, evaluate_every_env_steps=40, evaluate_untrained=False)
        learner = start_learner(config=config)
        drive(run_config).until_finished(learner)
        requests = evaluation_requests(redis_client, keys)
        assert requests[0].grad_steps == run_config.num_offline_steps
        assert requests[-1].env_steps == run_config.num_env_steps
        between = [r.env_steps for r in requests[1:-1]]
        assert between == sorted(set(between))
        assert len({steps // 40 for steps in between}) == len(between) > 0

    def test_without_offline_data_the_offline_phase_is_skipped(
        self, state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun,
    ) -> None:  # fmt: skip
        seed(redis_client, keys, None)
        state.set_phase(Phase.PRETRAINING)
        run = replace(run_config, initial_env_steps=0)
        state.initialise(run)
        learner = start_learner(run=run)
        finished = drive(run).until_finished(learner)
        assert finished.grad_steps == finished.online_grad_steps == run.num_env_steps

    def test_a_checkpoint_comes_before_each_publication_that_begins_a_phase(
        self, seeded_state: RunStateStore, run_config: RunConfig, start_learner: StartLearner, drive: DriveRun
    ) -> None:
        tape: list[tuple[object, ...]] = []

        def record(learner: Learner) -> None:
            plain_save, plain_publish = learner._store.save, learner._channel.publish

            def save(state: LearnerState, progress: Progress) -> Path:
                tape.append(("checkpoint", progress.phase, progress.grad_steps))
                return plain_save(state, progress)

            def publish(policy: PolicyWeights, *, for_evaluation: bool = False, enter: Phase | None = None) -> None:
                if enter is not None:
                    counters = seeded_state.read()
                    tape.append(("publish", enter, counters.grad_steps, for_evaluation))
                plain_publish(policy, for_evaluation=for_evaluation, enter=enter)

            learner._store.save = save  # type: ignore[method-assign]
            learner._channel.publish = publish  # type: ignore[method-assign]

        drive(run_config).until_finished(start_learner(prepare=record))
        assert tape == [
            ("checkpoint", Phase.ONLINE, 30),
            ("publish", Phase.ONLINE, 30, True),  # the counters in Redis, too, are there before the phase
            ("checkpoint", Phase.FINISHED, 130),
            ("publish", Phase.FINISHED, 130, True),
        ]

    def test_each_phase_has_its_batch_size_and_online_batches_their_offline_fraction(
        self, seeded_state: RunStateStore, run_config: RunConfig, start_learner: StartLearner, drive: DriveRun,
        monkeypatch: pytest.MonkeyPatch, redis_client: RedisClient, keys: Keys,
    ) -> None:  # fmt: skip
        batches: list[tuple[int, int]] = []

        def step(state: LearnerState, batch: TransitionBatch, config: LearnerConfig) -> UpdateMetrics:
            batches.append((len(batch.rewards), int((batch.rewards == SEED_REWARD).sum())))
            return gradient_step(state, batch, config)

        monkeypatch.setattr("learner.learner.gradient_step", step)
        drive(run_config).until_finished(start_learner(config=replace(CONFIG, offline_fraction=0.25)))
        assert batches == [(8, 8)] * 30 + [(16, 4)] * 100
        shares = [report.metrics["offline_ratio"] for _id, report in Reports(redis_client, keys).learner_reports()]
        assert shares[-1] == 0.25

    def test_metrics_and_reports_tell_what_was_done(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        learner = start_learner()
        finished = drive(run_config).until_finished(learner)
        address = seeded_state.endpoints()["learner"]

        def scraped() -> list[str]:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
                return list(reply.read().decode().splitlines())

        version = f"awac_learner_policy_version {float(finished.policy_version)}"
        wait_until(lambda: version in scraped(), version)
        lines = scraped()
        assert "awac_learner_grad_steps_total 130.0" in lines
        assert "awac_learner_samples_total 1840.0" in lines  # 30 x 8 + 100 x 16
        assert "awac_learner_ingested_steps_total 120.0" in lines
        learner.stop()
        assert seeded_state.endpoints() == {}
        report = Reports(redis_client, keys).latest_learner_report()
        assert report is not None
        assert (report.grad_steps, report.env_steps) == (130, 120)
        assert (report.metrics["seed_transitions"], report.metrics["online_transitions"]) == (60.0, 120.0)
        assert report.metrics["offline_ratio"] == pytest.approx(60 / 180)


class TestBadMessages:
    def test_are_quarantined_and_the_run_goes_on(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        learner = start_learner()
        driving = drive(run_config)
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        driving.actor.append(driving.actor.request(), broken=True)
        redis_client.xadd(keys.online, {"m": b"\x93garbage", "a": "0", "e": "1"})
        redis_client.xadd(keys.online, {"nothing": "at all"})
        driving.until_finished(learner)
        learner.stop()
        final = seeded_state.read()
        assert (final.quarantined_messages, final.quarantined_steps) == (3, 10)
        assert (final.env_steps, final.online_grad_steps) == (120, 100)
        assert unaccounted_steps(final, Reports(redis_client, keys).actors()) == 0
        reasons = [fields[b"reason"].decode() for _, fields in redis_client.xrange(keys.quarantine)]
        assert reasons[0] == "rewards: expected finite values, got NaN or infinity"

    def test_that_come_last_do_not_end_the_run_early(
        self, seeded_state: RunStateStore, redis_client: RedisClient, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The worst moment: after the learner has read the stream, and before it reads the number of stored steps."""
        monkeypatch.setattr("learner.learner._SYNC_EVERY_S", 1e9)  # no chance look at the stream between updates
        driving = drive(run_config)
        arrived: list[int] = []

        def let_one_arrive_late(learner: Learner) -> None:
            plain_hget = learner._client.hget

            def hget(name: str, key: str) -> bytes | None:
                if not arrived and int(plain_hget(name, "env_steps") or 0) == run_config.num_env_steps - 10:
                    lease = driving.actor.request()
                    if lease:
                        driving.actor.append(lease, broken=True)
                        arrived.append(lease)
                return plain_hget(name, key)

            learner._client.hget = hget  # type: ignore[method-assign]

        learner = start_learner(prepare=let_one_arrive_late)
        driving.until(learner, lambda s: s.env_steps == run_config.num_env_steps - 10 or bool(arrived))
        wait_until(lambda: bool(arrived), "the learner to ask for the number of stored steps")
        wait_until(lambda: seeded_state.read().online_grad_steps >= 90, "the updates for 110 good steps")
        waiting = seeded_state.read()
        assert (waiting.phase, waiting.env_steps, waiting.online_grad_steps) == (Phase.ONLINE, 110, 90)
        driving.until_finished(learner)
        learner.stop()
        final = seeded_state.read()
        assert arrived == [10]
        assert final.quarantined_steps == 10
        assert (final.env_steps, final.online_grad_steps) == (120, 100)

    def test_are_not_forgotten_when_redis_fails_while_they_are_moved(
        self, seeded_state: RunStateStore, redis_client: RedisClient, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        failures: list[str] = []

        def fail_once(learner: Learner) -> None:
            plain_put = learner._quarantine.put

            def put(bad: BadEntry) -> int:
                if not failures:
                    failures.append(bad.reason)
                    raise redis.exceptions.ConnectionError("reset by peer")
                return plain_put(bad)

            learner._quarantine.put = put  # type: ignore[method-assign]

        learner = start_learner(prepare=fail_once)
        driving = drive(run_config)
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        driving.actor.append(driving.actor.request(), broken=True)
        driving.until_finished(learner)
        assert len(failures) == 1
        final = seeded_state.read()
        assert (final.quarantined_messages, final.env_steps) == (1, 120)

    def test_in_the_seed_stream_end_the_learner(
        self, state: RunStateStore, redis_client: RedisClient, keys: Keys, start_learner: StartLearner
    ) -> None:
        redis_client.xadd(keys.seed, {"m": b"junk", "a": "-1", "e": "0", "s": "0", "n": "5", "f": "0"})
        redis_client.hset(keys.seed_info, mapping={"fingerprint": "x", "steps": 5, "episodes": 1, "complete": 1})
        with pytest.raises(DatasetError, match=r"seed entry .* does not fit the run"):
            start_learner().join()


class TestStopAndResume:
    def test_in_seeding(
        self, state: RunStateStore, redis_client: RedisClient, keys: Keys, start_learner: StartLearner,
        tmp_path: Path, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        start_learner().stop()
        assert not (tmp_path / "checkpoints").exists()
        assert state.read().grad_steps == 0
        seed(redis_client, keys, offline_data())
        state.set_phase(Phase.PRETRAINING)
        start_learner()
        wait_for_phase(state, Phase.ONLINE, wait_until)

    @pytest.mark.parametrize("stop_at", [0, 1, 17])
    def test_an_interrupted_offline_phase_ends_with_the_policy_of_an_uninterrupted_one(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, tmp_path: Path, wait_until: WaitUntil, stop_at: int,
    ) -> None:  # fmt: skip
        untouched_keys = Keys(f"{keys.run_id}-untouched")
        untouched_run = replace(run_config, run_id=untouched_keys.run_id)
        untouched = RunStateStore(redis_client, untouched_keys)
        untouched.initialise(untouched_run)
        seed(redis_client, untouched_keys, offline_data())
        start_learner(run=untouched_run, checkpoint_dir=tmp_path / "untouched")
        wait_for_phase(untouched, Phase.ONLINE, wait_until)

        start_learner(stop_at_grad_step=stop_at).join()
        if stop_at:
            progress, _ = saved(run_config, tmp_path / "checkpoints")
            assert (progress.phase, progress.offline_grad_steps) == (Phase.PRETRAINING, stop_at)
            assert seeded_state.read().phase is Phase.PRETRAINING
            assert seeded_state.read().policy_version == 0
        start_learner()
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        policies = [WeightsChannel(redis_client, k).fetch() for k in (keys, untouched_keys)]
        assert weights_digest(policies[0]) == weights_digest(policies[1])
        assert [p.grad_steps for p in policies if p] == [run_config.num_offline_steps] * 2

    def test_online(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, tmp_path: Path, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        first = start_learner(stop_at_grad_step=run_config.num_offline_steps + 37)
        driving = drive(run_config)
        driving.until_stopped(first)
        first.join()
        progress, digest = saved(run_config, tmp_path / "checkpoints")
        assert (progress.phase, progress.offline_grad_steps, progress.online_grad_steps) == (Phase.ONLINE, 30, 37)
        stopped = seeded_state.read()
        assert stopped.policy_version == progress.policy_version == 1 + 3

        start_learner(stop_at_grad_step=67).join()  # restores, publishes, and stops
        restored = WeightsChannel(redis_client, keys).fetch()
        assert restored is not None
        assert (restored.version, restored.grad_steps) == (stopped.policy_version + 1, 67)
        assert weights_digest(restored) == digest
        assert len(evaluation_requests(redis_client, keys)) == 2  # the untrained and the offline policy, once each
        assert replace(seeded_state.read(), policy_version=4) == replace(stopped, leased_steps=0)

        second = start_learner()
        driving.until_finished(second)
        second.stop()
        final = seeded_state.read()
        assert (final.grad_steps, final.online_grad_steps, final.env_steps) == (130, 100, 120)
        assert saved(run_config, tmp_path / "checkpoints")[0].phase is Phase.FINISHED

    def test_online_before_the_first_gradient_step(
        self, seeded_state: RunStateStore, run_config: RunConfig, start_learner: StartLearner, drive: DriveRun,
        wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        run = replace(run_config, num_offline_steps=0)
        seeded_state.initialise(run)
        first = start_learner(run=run)
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        first.stop()
        final = drive(run).until_finished(start_learner(run=run))
        assert final.grad_steps == final.online_grad_steps == 100

    def test_finished(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, tmp_path: Path, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        driving = drive(run_config)
        learner = start_learner()
        driving.until_finished(learner)
        learner.stop()
        before, digest = saved(run_config, tmp_path / "checkpoints")
        finished = seeded_state.read()

        reports = count_reports(redis_client, keys)
        again = start_learner()
        wait_until(lambda: count_reports(redis_client, keys) > reports, "the learner to be up again")
        again.stop()
        assert seeded_state.read() == finished
        assert saved(run_config, tmp_path / "checkpoints") == (before, digest)

        longer = replace(run_config, num_env_steps=150)
        seeded_state.initialise(longer)
        assert drive(longer).until(start_learner(run=longer), lambda s: s.grad_steps == 160).env_steps == 150
        wait_for_phase(seeded_state, Phase.FINISHED, wait_until)

    def test_a_crash_between_the_last_checkpoint_and_its_publication(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        learner = start_learner()
        version = drive(run_config).until_finished(learner).policy_version
        learner.stop()
        seeded_state.set_phase(Phase.ONLINE)  # as if the publication that enters `finished` had not happened
        start_learner()
        wait_for_phase(seeded_state, Phase.FINISHED, wait_until)
        last = evaluation_requests(redis_client, keys)[-1]
        assert (last.version, last.grad_steps) == (version + 1, 130)

    def test_a_crash_between_the_first_checkpoint_and_its_publication(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, tmp_path: Path, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        state = make_state(CONFIG, run_config.spec, seed=5, device=CPU)
        store = CheckpointStore(tmp_path / "checkpoints", spec=run_config.spec, config=CONFIG)
        store.save(state, Progress(phase=Phase.ONLINE, offline_grad_steps=30))
        start_learner()
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        assert [(r.version, r.grad_steps) for r in evaluation_requests(redis_client, keys)] == [(1, 30)]

    def test_published_versions_without_checkpoints_are_refused(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, tmp_path: Path, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        first = start_learner()
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        first.stop()
        before = redis_client.get(keys.weights)
        with pytest.raises(CheckpointError, match=r"has published policy version 1, but its checkpoints are gone"):
            start_learner(checkpoint_dir=tmp_path / "elsewhere").join()
        assert redis_client.get(keys.weights) == before

    def test_a_resumed_learner_samples_what_the_stream_retains(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        run = replace(run_config, replay=ReplayConfig(capacity=50, evict_seed=False))
        seeded_state.initialise(run)
        learner = start_learner(run=run)
        drive(run).until_finished(learner)
        learner.stop()
        reports = count_reports(redis_client, keys)
        again = start_learner(run=run)
        wait_until(lambda: count_reports(redis_client, keys) > reports, "the learner to be up again")
        again.stop()
        old, new = learner.learner._mirror, again.learner._mirror
        assert new.check_valid() is None
        assert (new.seed_size, new.online_size) == (60, seeded_state.read().retained_steps) == (60, 50)
        batches = [m.sample(500, torch.Generator().manual_seed(1), offline_fraction=None) for m in (old, new)]
        assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


class TestProcess:
    def start(self, run: RunConfig, endpoint: RedisEndpoint, folder: Path, **learner: Any) -> subprocess.Popen[str]:
        tables = {
            "env": run.env,
            "run_id": run.run_id,
            "num_offline_steps": run.num_offline_steps,
            "environment": {"max_episode_steps": EPISODE_STEPS, "observation_dim": 3, "action_dim": 2},
            "learner": {"policy_hidden_sizes": [8], "critic_hidden_sizes": [8], "threads": 1, **learner},
        }
        config = folder / "run.toml"
        config.write_bytes(tomli_w.dumps(tables).encode())
        command = [sys.executable, "-m", "learner", "--config", str(config), "--device", "cpu"]
        return subprocess.Popen(
            [*command, "--checkpoint-dir", str(folder / "checkpoints")],
            env={**os.environ, **endpoint.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def test_ends_on_sigterm_with_code_0_and_a_checkpoint(
        self, seeded_state: RunStateStore, run_config: RunConfig, redis_endpoint: RedisEndpoint, tmp_path: Path,
        wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        process = self.start(run_config, redis_endpoint, tmp_path)
        try:
            wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 0, output
        manifest = json.loads((tmp_path / "checkpoints/step-000000000030/manifest.json").read_text())
        assert manifest["progress"]["phase"] == "online"

    def test_ends_with_code_2_and_no_traceback_when_checkpoints_are_gone(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        redis_endpoint: RedisEndpoint, tmp_path: Path,
    ) -> None:  # fmt: skip
        redis_client.hset(keys.run, "policy_version", 3)
        process = self.start(run_config, redis_endpoint, tmp_path)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "error: run" in output
        assert "published policy version 3, but its checkpoints are gone" in output
        assert "Traceback" not in output
