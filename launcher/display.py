"""How `launcher up`, `watch` and `status` show a run: a live screen in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live

from launcher.dashboard import Dashboard
from launcher.rates import Rates
from launcher.snapshot import Snapshot
from launcher.wording import describe_evaluation, duration
from replay_service.run_state import Phase

_PLAIN_PERIOD_S = 5.0


def plain_line(snapshot: Snapshot, rates: Rates, notice: str) -> str:
    """The state of a run in one line without colour."""
    state = snapshot.state
    _share, text = snapshot.progress()
    parts = [text, f"{rates.env_rate:.0f} env steps/s", f"{rates.grad_rate:.0f} gradient steps/s"]
    left = rates.seconds_left(snapshot)
    if left is not None:
        parts.append(f"{duration(left)} left")
    if state.measured_utd_ratio is not None:
        parts.append(f"utd {state.measured_utd_ratio:.2f}")
    parts.append(f"policy version {state.policy_version}")
    if snapshot.evaluations:
        parts.append(describe_evaluation(snapshot.evaluations[-1]))
    if notice:
        parts.append(notice)
    return " | ".join(parts)


class Display:
    """Shows snapshots: a live screen when stdout is a terminal, else one plain line every five seconds."""

    def __init__(self, title: str, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._console = console
        self._clock = clock
        self.rates = Rates()
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
        self._last_line = -_PLAIN_PERIOD_S
        self._shown_phase: Phase | None = None
        self.notice = ""

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """Show one message: above the live screen, or as a line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say once, until `clear_warning`, that something is wrong."""
        if self.notice != text:
            self.notice = text
            self.say(text)

    def clear_warning(self) -> None:
        """What was wrong is mended."""
        self.notice = ""

    def show(self, snapshot: Snapshot) -> None:
        """Show the run as it is now."""
        self.rates.update(snapshot)
        if self._live is not None:
            self._live.update(Dashboard(snapshot, self.rates, self._title, self.notice))
            return
        now = self._clock()
        if now - self._last_line >= _PLAIN_PERIOD_S or snapshot.state.phase is not self._shown_phase:
            self._last_line = now
            self._shown_phase = snapshot.state.phase
            self.say(plain_line(snapshot, self.rates, self.notice))
