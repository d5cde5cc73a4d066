"""The metric of waiting, the same in every process: who waited, for what, for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from replay_service.outage import OUTAGE_REASONS

ROLE_REASONS: Mapping[str, tuple[str, ...]] = {
    "replay": ("disk",),
    "learner": ("experience", "seed", "disk", "end"),
    "actor": ("phase", "limiter", "turn", "budget", "weights"),
    "evaluator": (),
}
"""For what each role waits beside the outages of Redis."""


@dataclass(frozen=True, slots=True)
class WaitSeconds:
    """`awac_wait_seconds_total{role, reason}` of one process."""

    counter: Counter
    role: str

    @staticmethod
    def register(registry: CollectorRegistry, role: str) -> WaitSeconds:
        """Create the metric in a registry, with 0 for each reason.

        Args:
            registry: of the process.
            role: one of `ROLE_REASONS`.
        """
        counter = Counter(
            "awac_wait_seconds_total", "Time waited, by who waited and for what.", ["role", "reason"], registry=registry
        )
        for reason in (*OUTAGE_REASONS, *ROLE_REASONS[role]):
            counter.labels(role, reason)
        return WaitSeconds(counter, role)

    def add(self, reason: str, seconds: float) -> None:
        """Count a wait."""
        self.counter.labels(self.role, reason).inc(seconds)
