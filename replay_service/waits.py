"""The metric of waiting, the same in every process: who waited, for what, for how long."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from replay_service.outage import OUTAGE_REASONS


@dataclass(frozen=True, slots=True)
class WaitSeconds:
    """`awac_wait_seconds_total{role, reason}` of one process."""

    counter: Counter
    role: str

    @staticmethod
    def register(registry: CollectorRegistry, role: str, *, reasons: tuple[str, ...] = ()) -> WaitSeconds:
        """Create the metric in a registry, with 0 for each reason.

        Args:
            registry: of the process.
            role: actor, evaluator, learner or replay.
            reasons: for which the role waits beside the outages of Redis.
        """
        counter = Counter(
            "awac_wait_seconds_total", "Time waited, by who waited and for what.", ["role", "reason"], registry=registry
        )
        for reason in (*OUTAGE_REASONS, *reasons):
            counter.labels(role, reason)
        return WaitSeconds(counter, role)

    def add(self, reason: str, seconds: float) -> None:
        """Count a wait."""
        self.counter.labels(self.role, reason).inc(seconds)
