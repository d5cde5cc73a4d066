"""Numbers and states of a run in words, as every display writes them."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.snapshot import Snapshot
from replay_service.reports import Evaluation
from replay_service.run_state import Phase

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*#@"


def percent(value: float | None) -> str:
    """A ratio as '73 %', or '-' when unknown."""
    return "-" if value is None else f"{100 * value:.0f} %"


def duration(seconds: float) -> str:
    """Seconds as '1:02:03' or '2:03'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def age(seconds: float | None) -> str:
    """An age as '0.4 s', '12 s' or '2:05', or '-' when unknown."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else duration(seconds)


def rate(value: float) -> str:
    """A rate with as many digits as it needs: '0.4', '12', '1,234'."""
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it must be: '1 restart', '2 restarts'."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def mebibytes(value: int) -> str:
    """Bytes as whole MiB, without the unit."""
    return f"{value / 2**20:,.0f}"


def sparkline(values: Sequence[float | None], *, top: float | None = None, ascii_only: bool = False) -> str:
    """Values as a line of blocks, one a value, from 0 to the largest (or to `top`); a blank where there is none.

    Args:
        values: what to draw, oldest first; below 0 counts as 0.
        top: what the highest block stands for.
        ascii_only: for terminals whose encoding has no blocks.
    """
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    largest = max((value for value in values if value is not None), default=0.0) if top is None else top

    def block(value: float | None) -> str:
        if value is None:
            return " "
        share = min(1.0, max(0.0, value) / largest) if largest > 0 else 0.0
        return blocks[round(share * (len(blocks) - 1))]

    return "".join(block(value) for value in values)


def describe_evaluation(evaluation: Evaluation) -> str:
    """One line about an evaluation."""
    success = ""
    if evaluation.success_any is not None:
        success = f"success any {percent(evaluation.success_any)}, final {percent(evaluation.success_final)}, "
    return f"version {evaluation.policy_version}: {success}return {evaluation.episode_return:.1f}"


def describe_trend(evaluations: Sequence[Evaluation], *, ascii_only: bool = False, width: int = 30) -> str:
    """The success (or else the return) of the newest evaluations as a line, and what the last one changed."""
    shown = evaluations[-width:]
    judged = [item.success_any for item in shown if item.success_any is not None]
    if len(judged) == len(shown):
        line = sparkline(judged, top=1.0, ascii_only=ascii_only)
        change = f"{100 * (judged[-1] - judged[-2]):+.0f} points" if len(judged) > 1 else ""
        return f"success {line} {change}".rstrip()
    returns = [item.episode_return for item in shown]
    line = sparkline([value - min(returns) for value in returns], ascii_only=ascii_only)
    change = f"{returns[-1] - returns[-2]:+.1f}" if len(returns) > 1 else ""
    return f"return {line} {change}".rstrip()


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
