"""What a learner does beside its gradient steps: exchange with Redis, reports, checkpoints."""

from __future__ import annotations

import logging
import math
import time

import torch

from learner.checkpoint import Progress
from learner.divergence import refuse_divergence
from learner.report import MetricMeans
from learner.session import Session
from learner.startup import Experience
from replay_service.disk_space import wait_for_space
from replay_service.reports import LearnerReport

_SYNC_EVERY_S = 0.05
"""Longest time between two round trips to Redis while updates go on."""
_BLOCK_MS = 100

_log = logging.getLogger(__name__)


class Upkeep:
    """Keeps Redis, the reports and the checkpoints up with a learner.

    Args:
        session: of the learner.
        progress: what is reported and saved; its count of env steps follows Redis.
        experience: what new trajectories are taken into.
    """

    def __init__(self, session: Session, progress: Progress, experience: Experience) -> None:
        self._session = session
        self._progress = progress
        self._mirror, self._ingestion = experience
        self._means = MetricMeans()
        self._last_sync = self._last_checkpoint = time.monotonic()
        self._waited_s = 0.0

    def after_step(self, metrics: torch.Tensor) -> None:
        """Take in the metrics of a gradient step, and do what is due.

        Args:
            metrics: (M,) in the order of `UpdateMetrics`, read before the next operation is queued.

        Raises:
            LearningDiverged: a metric or a network is not finite.
        """
        self._means.add(metrics)
        now = time.monotonic()
        if now - self._last_sync >= _SYNC_EVERY_S:
            self.sync()
        if self._means.seconds >= self._session.config.report_every_s:
            self.report()
        if now - self._last_checkpoint >= self._session.config.checkpoint_every_s:
            self.checkpoint()

    def await_experience(self, awaited: str) -> None:
        """Wait a moment for new trajectories, and count the wait."""
        session = self._session
        session.notice.waiting(awaited)
        began = time.monotonic()
        self.sync(block_ms=_BLOCK_MS)
        waited = time.monotonic() - began
        self._waited_s += waited
        session.waits.add("experience", waited)
        if self._means.seconds >= session.config.report_every_s:
            self.report()

    def sync(self, *, block_ms: int | None = None) -> None:
        """Tell Redis how far the learner is, take in new trajectories, and learn how many steps are stored.

        Args:
            block_ms: how long to wait for a trajectory; None does not.
        """
        session, progress, ingestion = self._session, self._progress, self._ingestion

        def exchange() -> int:
            counters = {"grad_steps": progress.grad_steps, "online_grad_steps": progress.online_grad_steps}
            session.client.hset(session.keys.run, mapping=counters)
            if block_ms is not None:
                ingestion.read_online(progress, block_ms=block_ms)
            env_steps = session.run_state.env_steps()
            # All of these steps are in the stream by now. Reading it to its end shows which of them are bad, so the
            # learner never works, nor finishes, for steps that are taken out again.
            return env_steps - ingestion.read_online_to_its_end(progress)

        env_steps = session.patience.until_answered(exchange)
        if env_steps is not None and not session.run.lockstep:
            progress.env_steps = env_steps
        self.publish_what_redis_lost()
        self._last_sync = time.monotonic()

    def publish_what_redis_lost(self) -> None:
        """Publish the newest version again, should Redis have died and forgotten it."""
        session = self._session
        session.patience.until_answered(
            lambda: session.publisher.publish_what_redis_lost(self._progress, session.run_state.read())
        )

    def report(self) -> None:
        """Send the means since the last report, and set the gauges.

        Raises:
            LearningDiverged: a mean is not finite.
        """
        session, mirror = self._session, self._mirror
        means, steps, seconds = self._means.take()
        refuse_divergence((name for name, mean in means.items() if not math.isfinite(mean)), self._progress.grad_steps)
        if means:
            means["unlearned_critics"] = float(session.state.critics.unlearned())
        waited, self._waited_s = self._waited_s, 0.0
        offline_ratio = self._offline_ratio()
        for name, value in means.items():
            session.metrics.update.labels(name).set(value)
        session.metrics.mirror_transitions.labels("seed").set(mirror.seed_size)
        session.metrics.mirror_transitions.labels("online").set(mirror.online_size)
        session.metrics.offline_ratio.set(offline_ratio)
        report = LearnerReport(
            grad_steps=self._progress.grad_steps,
            env_steps=self._progress.env_steps,
            unix_seconds=time.time(),
            metrics={
                **means,
                "grad_steps_per_second": steps / seconds,
                "waiting_ratio": min(1.0, waited / seconds),
                "seed_transitions": float(mirror.seed_size),
                "online_transitions": float(mirror.online_size),
                "offline_ratio": offline_ratio,
            },
        )
        session.patience.until_answered(lambda: session.reports.add_learner_report(report))

    def checkpoint(self) -> bool:
        """Save the state and the progress; a full disk is waited for.

        Returns:
            Whether it was written; False when a stop came first.

        Raises:
            LearningDiverged: a tensor is not finite.
        """
        session = self._session
        # Going on without it would lead back behind what actors have seen.
        folder = wait_for_space(
            lambda: session.checkpoints.save(session.state, self._progress),
            "learner",
            stop=session.stop,
            waits=session.waits,
        )
        if folder is None:
            return False
        self._last_checkpoint = time.monotonic()
        session.patience.until_answered(lambda: session.run_state.set_checkpointed(self._progress.grad_steps))
        session.metrics.checkpoints.inc()
        _log.info("checkpoint %s", folder.name)
        return True

    def _offline_ratio(self) -> float:
        """Expected share of offline data in a batch; pretraining draws from all data alike."""
        fraction, mirror = self._session.config.offline_fraction, self._mirror
        if fraction is not None and self._progress.online_grad_steps and mirror.online_size and mirror.seed_size:
            return fraction
        return mirror.seed_size / max(1, mirror.size)
