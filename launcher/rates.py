"""Rates of a run: now, from successive snapshots; and over the last minutes, from the learner's reports."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.snapshot import RateMeter, Snapshot
from replay_service.reports import LearnerReport
from replay_service.run_state import Phase

BAR_SECONDS = 5.0
"""Time that one block of a history line stands for."""
_ACTOR_WINDOW_S = 30.0  # messages of an actor are seconds apart


@dataclass(slots=True)
class Rates:
    """Env steps and gradient steps a second, those of each actor, and the time left, from successive snapshots."""

    env_steps: RateMeter = field(default_factory=RateMeter)
    grad_steps: RateMeter = field(default_factory=RateMeter)
    env_rate: float = 0.0
    grad_rate: float = 0.0
    actor_rates: dict[int, float] = field(default_factory=dict)
    _actor_meters: dict[int, RateMeter] = field(default_factory=dict)

    def update(self, snapshot: Snapshot) -> None:
        """Take in a snapshot."""
        self.env_rate = self.env_steps.add(snapshot.state.env_steps)
        self.grad_rate = self.grad_steps.add(snapshot.state.grad_steps)
        for actor in snapshot.actors:
            meter = self._actor_meters.setdefault(actor.actor_id, RateMeter(_ACTOR_WINDOW_S, self.env_steps.clock))
            self.actor_rates[actor.actor_id] = meter.add(actor.stored_steps)

    def seconds_left(self, snapshot: Snapshot) -> float | None:
        """Time until the current phase ends at the current rate, or None when it cannot be said."""
        state = snapshot.state
        if state.phase is Phase.PRETRAINING and self.grad_rate > 0:
            return max(0.0, (state.num_offline_steps - state.grad_steps) / self.grad_rate)
        if state.phase is Phase.ONLINE and self.env_rate > 0:
            return max(0.0, (state.num_env_steps - state.env_steps) / self.env_rate)
        return None


def rate_history(
    reports: Sequence[LearnerReport], counter: str, *, bars: int, bar_s: float = BAR_SECONDS
) -> list[float | None]:
    """Rates of a counter over equal pieces of the time before the newest report.

    Args:
        reports: oldest first.
        counter: env_steps or grad_steps.
        bars: how many pieces, the last one ending at the newest report.
        bar_s: length of a piece.

    Returns:
        A rate a second for each piece; None where no report reaches, 0 where the counter went back.
    """
    if len(reports) < 2:
        return [None] * bars
    times = [report.unix_seconds for report in reports]
    counts = [float(getattr(report, counter)) for report in reports]
    ends = [times[-1] - bar_s * (bars - 1 - i) for i in range(bars)]

    def rate_until(end: float) -> float | None:
        if end - bar_s < times[0]:
            return None
        return max(0.0, (_count_at(end, times, counts) - _count_at(end - bar_s, times, counts)) / bar_s)

    return [rate_until(end) for end in ends]


def _count_at(moment: float, times: list[float], counts: list[float]) -> float:
    right = bisect_right(times, moment)
    if right >= len(times):
        return counts[-1]
    span = times[right] - times[right - 1]
    share = (moment - times[right - 1]) / span if span > 0 else 1.0
    return counts[right - 1] + share * (counts[right] - counts[right - 1])
