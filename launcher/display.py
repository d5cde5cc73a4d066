"""What `launcher up` and `launcher status` show: a live screen in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launcher.snapshot import RateMeter, Snapshot
from replay_service.reports import ActorLedger, Evaluation
from replay_service.run_state import Phase

_PLAIN_PERIOD_S = 5.0
_ACTOR_ROWS = 6
_EVALUATION_ROWS = 6


def percent(value: float | None) -> str:
    """A ratio as '73 %', or '-' when unknown."""
    return "-" if value is None else f"{100 * value:.0f} %"


def duration(seconds: float) -> str:
    """Seconds as '1:02:03' or '2:03'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe_evaluation(evaluation: Evaluation) -> str:
    """One line about an evaluation."""
    success = ""
    if evaluation.success_any is not None:
        success = f"success any {percent(evaluation.success_any)}, final {percent(evaluation.success_final)}, "
    return f"version {evaluation.policy_version}: {success}return {evaluation.episode_return:.1f}"


@dataclass(slots=True)
class Rates:
    """Env steps and gradient steps a second, and the time left, from successive snapshots."""

    env_steps: RateMeter = field(default_factory=RateMeter)
    grad_steps: RateMeter = field(default_factory=RateMeter)
    env_rate: float = 0.0
    grad_rate: float = 0.0

    def update(self, snapshot: Snapshot) -> None:
        """Take in a snapshot."""
        self.env_rate = self.env_steps.add(snapshot.state.env_steps)
        self.grad_rate = self.grad_steps.add(snapshot.state.grad_steps)

    def seconds_left(self, snapshot: Snapshot) -> float | None:
        """Time until the current phase ends at the current rate, or None when it cannot be said."""
        state = snapshot.state
        if state.phase is Phase.PRETRAINING and self.grad_rate > 0:
            return max(0.0, (state.num_offline_steps - state.grad_steps) / self.grad_rate)
        if state.phase is Phase.ONLINE and self.env_rate > 0:
            return max(0.0, (state.num_env_steps - state.env_steps) / self.env_rate)
        return None


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


def waits(snapshot: Snapshot) -> str:
    """Who waits for whom now, in words."""
    report = snapshot.report
    if snapshot.state.phase is Phase.PRETRAINING:
        return "actors wait for the offline phase to end"
    if snapshot.state.phase is not Phase.ONLINE or report is None:
        return ""
    ratio = report.metrics.get("waiting_ratio", 0.0)
    if ratio > 0.5:
        return f"the learner waits for env steps {percent(ratio)} of the time"
    if ratio < 0.05:
        return "the learner is busy; actors wait for it when they are ahead"
    return f"balanced; the learner waits {percent(ratio)} of the time"


def dashboard(snapshot: Snapshot, rates: Rates, title: str, notice: str) -> RenderableType:
    """The live screen: fits 80 columns and 24 rows."""
    state = snapshot.state
    share, text = snapshot.progress()
    left = rates.seconds_left(snapshot)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    facts.add_row("phase", text + (f", {duration(left)} left" if left is not None else ""))
    facts.add_row("rates", f"{rates.env_rate:,.0f} env steps/s   {rates.grad_rate:,.0f} gradient steps/s")
    measured = state.measured_utd_ratio
    facts.add_row("utd ratio", f"{'-' if measured is None else f'{measured:.2f}'}   {waits(snapshot)}")
    facts.add_row("replay", f"{state.seed_steps:,} seed + {state.retained_steps:,} online transitions")
    facts.add_row("policy", f"version {state.policy_version}")
    facts.add_row("actors", _describe_actors(snapshot))
    if notice:
        facts.add_row("notice", Text(notice, style="yellow"))
    bar = Table.grid()  # a bar alone ends without a line feed
    bar.add_row(ProgressBar(total=1.0, completed=share, width=78))
    parts: list[RenderableType] = [Text(title, style="bold"), bar, facts]
    if snapshot.evaluations:
        parts.append(evaluation_table(snapshot.evaluations[-_EVALUATION_ROWS:]))
    if state.phase is Phase.ONLINE:
        parts.append(_actor_table(snapshot.actors[:_ACTOR_ROWS]))
        if len(snapshot.actors) > _ACTOR_ROWS:
            parts.append(Text(f"... and {len(snapshot.actors) - _ACTOR_ROWS} more actors", style="dim"))
    return Group(*parts)


def evaluation_table(evaluations: list[Evaluation]) -> Table:
    """Evaluations as a table, a row each."""
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for name in ("env steps", "gradient steps", "version", "success any", "final", "of steps", "return"):
        table.add_column(name, justify="right")
    for item in evaluations:
        table.add_row(
            f"{item.env_steps:,}",
            f"{item.grad_steps:,}",
            str(item.policy_version),
            percent(item.success_any),
            percent(item.success_final),
            percent(item.success_fraction),
            f"{item.episode_return:.1f}",
        )
    return table


def _actor_table(actors: list[ActorLedger]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for name in ("actor", "steps", "episodes", "success", "last return", "version", "restarts"):
        table.add_column(name, justify="right")
    for actor in actors:
        success = percent(actor.successes / actor.episodes) if actor.episodes else "-"
        last = "-" if actor.last_return is None else f"{actor.last_return:.1f}"
        table.add_row(
            str(actor.actor_id),
            f"{actor.stored_steps:,}",
            str(actor.episodes),
            success,
            last,
            str(actor.policy_version),
            str(actor.restarts),
        )
    return table


def _describe_actors(snapshot: Snapshot) -> str:
    state = snapshot.state
    text = f"{snapshot.actors_alive} of {len(snapshot.actors)} alive, {state.episodes:,} episodes"
    if state.episodes:
        text += f", {percent(state.successes / state.episodes)} successful"
    return text + (f", {state.actor_restarts} restarts" if state.actor_restarts else "")


class Display:
    """Shows snapshots: a live screen when stdout is a terminal, else one plain line every five seconds."""

    def __init__(self, title: str, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._console = console
        self._clock = clock
        self._rates = Rates()
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
        self._rates.update(snapshot)
        if self._live is not None:
            self._live.update(dashboard(snapshot, self._rates, self._title, self.notice))
            return
        now = self._clock()
        if now - self._last_line >= _PLAIN_PERIOD_S or snapshot.state.phase is not self._shown_phase:
            self._last_line = now
            self._shown_phase = snapshot.state.phase
            self.say(plain_line(snapshot, self._rates, self.notice))
