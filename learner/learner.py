"""The learner's process: seeding -> pretraining -> online -> finished, resumable in any of them."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry

from learner.checkpoint import CheckpointStore, Progress
from learner.config import LearnerConfig
from learner.divergence import refuse_divergence
from learner.gradient_steps import GradientSteps, capture_for
from learner.ingestion import Ingestion
from learner.matrix_products import prefer_onednn
from learner.metrics import LearnerMetrics
from learner.mirror import ReplayMirror
from learner.publication import Publisher
from learner.report import MetricMeans
from learner.threads import use_threads
from learner.turn_taking import TurnTaking
from learner.update import LearnerState, fit_observation_scale, make_state
from replay_service.config import RunConfig
from replay_service.connection import FAREWELL_ERRORS, RedisEndpoint, connect
from replay_service.disk_space import wait_for_space
from replay_service.errors import CheckpointError
from replay_service.keys import Keys
from replay_service.lockstep import turn_of_version
from replay_service.patience import Patience
from replay_service.process import StopSignal, WaitNotice, serve_metrics
from replay_service.rate_limiter import updates_allowed
from replay_service.reports import LearnerReport, Reports, is_all_judged
from replay_service.run_state import Phase, RunState, RunStateStore
from replay_service.seeding import SeedInfo, seed_info
from replay_service.spec_check import check_spec
from replay_service.trajectory_stream import Quarantine, TrajectoryReader
from replay_service.waits import WaitSeconds
from replay_service.weights_channel import WeightsChannel

_PROCESS_NAME = "learner"
_SYNC_EVERY_S = 0.05
"""Longest time between two round trips to Redis while updates go on."""
_BLOCK_MS = 100
_IDLE_PAUSE_S = 0.05

_log = logging.getLogger(__name__)


class Learner:
    """The process. `run` is startup, the phases, shutdown."""

    def __init__(
        self,
        run: RunConfig,
        config: LearnerConfig,
        endpoint: RedisEndpoint,
        *,
        checkpoint_dir: Path,
        device: torch.device,
        stop: StopSignal,
        exit_when_finished: bool = False,
    ) -> None:
        self._run = run
        self._exit_when_finished = exit_when_finished
        self._config = config
        self._device = device
        self._stop = stop
        keys = Keys(run.run_id)
        self._keys = keys
        self._client = connect(endpoint)
        self._run_state = RunStateStore(self._client, keys)
        self._channel = WeightsChannel(self._client, keys)
        self._reports = Reports(self._client, keys)
        self._quarantine = Quarantine(self._client, keys)
        self._notice = WaitNotice("learner")
        self._store = CheckpointStore(checkpoint_dir, spec=run.spec, config=config)
        self._registry = CollectorRegistry()
        self._metrics = LearnerMetrics.register(self._registry)
        self._waits = WaitSeconds.register(self._registry, _PROCESS_NAME)
        self._patience = Patience("learner", stop, waits=self._waits)
        self._means = MetricMeans()
        self._state: LearnerState = make_state(config, run.spec, seed=run.seed, device=device)
        self._publisher = Publisher(run, config, self._state, channel=self._channel, metrics=self._metrics)
        self._progress = Progress()
        self._last_sync = self._last_checkpoint = time.monotonic()
        self._waited_s = 0.0
        self._mirror: ReplayMirror
        self._steps: GradientSteps
        self._ingestion: Ingestion

    def run(self) -> None:
        """Work until the budget is done and, unless told to exit then, a stop is asked for.

        Raises:
            CheckpointError: the run has made progress that no sound checkpoint holds.
            DatasetError: a seed message does not fit the run.
            LearningDiverged: the networks hold NaN or infinity.
            SpecMismatch: the run belongs to another environment or wire version.
        """
        self._state.lanes = use_threads(self._config, self._device)
        if self._device.type == "cpu":
            _log.info("matrix products by %s", "oneDNN" if prefer_onednn() else "the default library")
        address = serve_metrics(self._registry, self._run.metrics_host)
        seeded = self._wait_for_seed()
        if seeded is None:
            return
        self._patience.until_answered(lambda: check_spec(self._client, self._keys, self._run.spec, who="the learner"))
        self._patience.until_answered(lambda: self._run_state.publish_endpoint(_PROCESS_NAME, address))
        self._restore()
        self._fill_mirror(seeded)
        if self._progress.phase in (Phase.SEEDING, Phase.PRETRAINING):
            self._pretrain()
        if self._progress.phase is Phase.ONLINE and not self._stop.is_set():
            turns = self._ingestion.turns
            if turns is not None:
                self._fine_tune_in_turns(turns)
            else:
                self._fine_tune()
        self._finish()

    # Startup

    def _wait_for_seed(self) -> SeedInfo | None:
        while not self._stop.is_set():
            found = self._patience.until_answered(lambda: seed_info(self._client, self._keys))
            if found is not None:
                self._notice.done()
                return found
            self._notice.waiting("the replay service to seed the buffer")
            self._stop.wait(_IDLE_PAUSE_S)
            self._waits.add("seed", _IDLE_PAUSE_S)
        return None

    def _restore(self) -> None:
        shared = self._patience.until_answered(self._run_state.read)
        restored = self._store.restore(self._state)
        if restored is None:
            if shared is not None and shared.policy_version > 0:
                raise CheckpointError(
                    f"run {self._run.run_id!r} has published policy version {shared.policy_version}, but its "
                    "checkpoints are gone: put them back, or start over with --restart-behavior restart"
                )
            return
        self._progress = restored
        self._progress.stream_position = 0  # filling the mirror finds it again
        if self._run.lockstep:
            # A version names its turn. What was published behind the checkpoint is published again, bit by bit.
            due = restored.phase is Phase.ONLINE and restored.policy_version == 0
            unfinished = restored.phase is Phase.FINISHED and shared is not None and shared.phase is not restored.phase
            if due or unfinished:
                self._publish(for_evaluation=True, enter=restored.phase)
            return
        if shared is not None:
            # Actors must see a newer number than any they have; what they then fetch is the restored policy.
            self._progress.policy_version = max(restored.policy_version, shared.policy_version)
            if self._budget_grew(shared):
                self._progress.phase = Phase.ONLINE
        phase = self._progress.phase
        if phase is Phase.ONLINE or (phase is Phase.FINISHED and shared is not None and shared.phase is not phase):
            # A crash between a checkpoint and the publication behind it has cost an evaluation: of the first version,
            # or of the last one.
            due = phase is Phase.FINISHED or self._progress.policy_version == 0
            self._publish(for_evaluation=due, enter=phase)

    def _budget_grew(self, shared: RunState) -> bool:
        return self._progress.phase is Phase.FINISHED and shared.env_steps < shared.num_env_steps

    def _fill_mirror(self, seeded: SeedInfo) -> None:
        spec = self._run.spec
        self._mirror = ReplayMirror(
            observation_dim=spec.observation_dim,
            action_dim=spec.action_dim,
            seed_steps=seeded.steps,
            capacity=self._run.replay.capacity,
            evict_seed=self._run.replay.evict_seed,
            device=self._device,
        )
        capture = capture_for(self._device, self._config)
        self._steps = GradientSteps(self._state, self._mirror, self._config, capture=capture)
        ingestion = self._ingestion = Ingestion(
            self._run,
            self._config,
            self._mirror,
            online=TrajectoryReader(self._client, self._keys.online, spec),
            quarantine=self._quarantine,
            patience=self._patience,
            metrics=self._metrics,
        )
        seed = TrajectoryReader(self._client, self._keys.seed, spec)
        while not self._stop.is_set() and self._patience.until_answered(lambda: ingestion.read_seed(seed)):
            pass
        if self._config.normalise_observations and self._progress.grad_steps == 0 and self._mirror.seed_size > 1:
            fit_observation_scale(self._state, self._mirror.seed_observations())
        while not self._stop.is_set() and self._patience.until_answered(
            lambda: ingestion.read_online(self._progress, block_ms=None) > 0
        ):
            pass
        if ingestion.turns is not None and not self._stop.is_set():
            ingestion.turns.retake(self._progress)
        self._prove_resume()
        _log.info("mirror holds %d seed and %d online transitions", self._mirror.seed_size, self._mirror.online_size)

    def _prove_resume(self) -> None:
        proof = self._store.record_proof(stream_position=self._progress.stream_position)
        if proof is None or self._stop.is_set():
            return
        _log.info("resume proved: %s", proof)
        if proof.stream_position_found < proof.stream_position:
            _log.warning(
                "Redis lacks %d steps that the checkpoint had taken in: one that is killed may forget its last second; "
                "actors that still have them send them again",
                proof.stream_position - proof.stream_position_found,
            )

    # Phases

    def _pretrain(self) -> None:
        config, progress = self._config, self._progress
        if progress.phase is Phase.SEEDING:
            progress.phase = Phase.PRETRAINING
            if config.evaluate_untrained:
                self._request_untrained_evaluation()
        if self._mirror.size == 0 and self._run.num_offline_steps:
            _log.warning("the offline phase is skipped: the run has no offline data")
        else:
            while progress.offline_grad_steps < self._run.num_offline_steps and not self._stop.is_set():
                self._step(config.offline_batch_size, offline_fraction=None)
                progress.offline_grad_steps += 1
                self._keep_house()
        if self._stop.is_set():
            return
        progress.phase = Phase.ONLINE
        progress.next_evaluation_env_steps = config.evaluate_every_env_steps
        # The checkpoint comes first: once actors have seen version 1, a crash must never lead back behind it. The
        # counters come before the phase: who sees the phase sees what was done for it.
        self._checkpoint()
        self._sync(block_ms=None)
        self._publish(for_evaluation=True, enter=Phase.ONLINE)
        _log.info("offline phase done after %d gradient steps; going online", progress.offline_grad_steps)

    def _fine_tune(self) -> None:
        config, progress = self._config, self._progress
        self._sync(block_ms=None)
        while not self._stop.is_set():
            allowed = self._updates_allowed()
            if allowed == 0:
                if self._budget_is_done():
                    self._complete()
                    return
                self._await_experience()
                continue
            self._notice.done()
            for _ in range(min(allowed, config.publish_every_grad_steps)):
                self._step(config.batch_size, offline_fraction=config.offline_fraction)
                progress.online_grad_steps += 1
                self._keep_house()
                if progress.online_grad_steps % config.publish_every_grad_steps == 0:
                    self._publish_online()
                if self._stop.is_set():
                    break

    def _fine_tune_in_turns(self, turns: TurnTaking) -> None:
        config, progress = self._config, self._progress
        self._sync(block_ms=None)
        while not self._stop.is_set():
            for _ in range(self._updates_allowed()):
                self._step(config.batch_size, offline_fraction=config.offline_fraction)
                progress.online_grad_steps += 1
                self._keep_house()
                if self._stop.is_set():
                    return
            if self._budget_is_done():
                self._complete()
                return
            if turn_of_version(progress.policy_version) < turns.next_turn:
                self._publish_online()
            while not turns.take(progress) and not self._stop.is_set():
                self._await_experience(turns.awaited(progress))
            self._notice.done()

    def _complete(self) -> None:
        self._progress.phase = Phase.FINISHED
        self._checkpoint()
        self._sync(block_ms=None)
        self._publish(for_evaluation=True, enter=Phase.FINISHED)
        _log.info("budget done: %d env steps, %d gradient steps", self._progress.env_steps, self._progress.grad_steps)

    def _finish(self) -> None:
        if self._progress.phase is not Phase.FINISHED and self._progress.phase is not Phase.SEEDING:
            self._sync(block_ms=None)  # so that the summary and the last checkpoint name the same step
            self._checkpoint()
        self._report()
        while not self._stop.wait(1.0):  # finished: metrics stay up until the launcher ends the run
            self._publish_what_redis_lost()
            if self._exit_when_finished and self._patience.until_answered(self._is_all_evaluated):
                # No launcher is there to say it; the replay service writes it into the summary.
                self._patience.until_answered(lambda: self._run_state.set_final_status("finished"))
                break
        try:
            self._run_state.withdraw_endpoint(_PROCESS_NAME)
        except FAREWELL_ERRORS as error:
            _log.warning("left without saying goodbye: %s", error)

    def _is_all_evaluated(self) -> bool:
        state = self._run_state.read()
        return is_all_judged(state, (evaluation for _, evaluation in self._reports.evaluations()))

    # Steps of the loop

    def _updates_allowed(self) -> int:
        if self._mirror.size == 0:
            return 0
        return updates_allowed(
            env_steps=self._progress.env_steps,
            online_grad_steps=self._progress.online_grad_steps,
            utd_ratio=self._run.utd_ratio,
            initial_env_steps=min(self._run.initial_env_steps, self._run.num_env_steps),
        )

    def _budget_is_done(self) -> bool:
        return self._progress.env_steps >= self._run.num_env_steps

    def _await_experience(self, awaited: str = "environment steps from the actors (limiter)") -> None:
        self._notice.waiting(awaited)
        began = time.monotonic()
        self._sync(block_ms=_BLOCK_MS)
        waited = time.monotonic() - began
        self._waited_s += waited
        self._metrics.wait_seconds.inc(waited)
        self._waits.add("experience", waited)
        if self._means.seconds >= self._config.report_every_s:
            self._report()

    def _step(self, batch_size: int, *, offline_fraction: float | None) -> None:
        self._means.add(self._steps.take(batch_size, offline_fraction=offline_fraction))
        self._metrics.grad_steps.inc()
        self._metrics.samples.inc(batch_size)

    def _keep_house(self) -> None:
        now = time.monotonic()
        if now - self._last_sync >= _SYNC_EVERY_S:
            self._sync(block_ms=None)
        if self._means.seconds >= self._config.report_every_s:
            self._report()
        if now - self._last_checkpoint >= self._config.checkpoint_every_s:
            self._checkpoint()

    def _sync(self, *, block_ms: int | None) -> None:
        """Tell Redis how far the learner is, take in new trajectories, and learn how many steps are stored."""
        progress = self._progress

        def exchange() -> int:
            counters = {"grad_steps": progress.grad_steps, "online_grad_steps": progress.online_grad_steps}
            self._client.hset(self._keys.run, mapping=counters)
            if block_ms is not None:
                self._ingestion.read_online(progress, block_ms=block_ms)
            env_steps = self._run_state.env_steps()
            # All of these steps are in the stream by now. Reading it to its end shows which of them are bad, so the
            # learner never works, nor finishes, for steps that are taken out again.
            return env_steps - self._ingestion.read_online_to_its_end(progress)

        env_steps = self._patience.until_answered(exchange)
        if env_steps is not None and not self._run.lockstep:
            progress.env_steps = env_steps
        self._publish_what_redis_lost()
        self._last_sync = time.monotonic()

    def _publish_online(self) -> None:
        self._patience.until_answered(lambda: self._publisher.publish_online(self._progress))

    def _publish(self, *, for_evaluation: bool = False, enter: Phase) -> None:
        self._patience.until_answered(
            lambda: self._publisher.publish(self._progress, for_evaluation=for_evaluation, enter=enter)
        )

    def _publish_what_redis_lost(self) -> None:
        self._patience.until_answered(
            lambda: self._publisher.publish_what_redis_lost(self._progress, self._run_state.read())
        )

    def _request_untrained_evaluation(self) -> None:
        self._patience.until_answered(
            lambda: self._publisher.request_untrained_evaluation(self._progress, self._run_state.read())
        )

    def _report(self) -> None:
        means, steps, seconds = self._means.take()
        refuse_divergence((name for name, mean in means.items() if not math.isfinite(mean)), self._progress.grad_steps)
        waited, self._waited_s = self._waited_s, 0.0
        for name, value in means.items():
            self._metrics.update.labels(name).set(value)
        self._metrics.mirror_transitions.labels("seed").set(self._mirror.seed_size)
        self._metrics.mirror_transitions.labels("online").set(self._mirror.online_size)
        self._metrics.offline_ratio.set(self._offline_ratio())
        rates = {"grad_steps_per_second": steps / seconds, "waiting_ratio": min(1.0, waited / seconds)}
        report = LearnerReport(
            grad_steps=self._progress.grad_steps,
            env_steps=self._progress.env_steps,
            unix_seconds=time.time(),
            metrics={
                **means,
                **rates,
                "seed_transitions": float(self._mirror.seed_size),
                "online_transitions": float(self._mirror.online_size),
                "offline_ratio": self._offline_ratio(),
            },
        )
        self._patience.until_answered(lambda: self._reports.add_learner_report(report))

    def _offline_ratio(self) -> float:
        """Expected share of seed data in a batch; pretraining draws from all data alike."""
        fraction, mirror = self._config.offline_fraction, self._mirror
        if fraction is not None and self._progress.online_grad_steps and mirror.online_size and mirror.seed_size:
            return fraction
        return mirror.seed_size / max(1, mirror.size)

    def _checkpoint(self) -> None:
        # Going on without it would lead back behind what actors have seen: a full disk is waited for.
        folder = wait_for_space(
            lambda: self._store.save(self._state, self._progress), "learner", stop=self._stop, waits=self._waits
        )
        if folder is None:
            return
        self._last_checkpoint = time.monotonic()
        self._metrics.checkpoints.inc()
        _log.info("checkpoint %s", folder.name)
