"""Draw what a learner reported over time, for `launcher report`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from launcher.plot import picture_style, save_figure
from replay_service.reports import LearnerReport

_POINTS = 200
"""About as many points as a picture can show; reports between them are averaged."""
_PAUSE_FACTOR = 10.0
"""A gap that is this many times the usual one is a pause of the run, not a slow stretch."""
_COLUMNS = 4
_SMALL_INCHES = (2.6, 1.9)
_WIDE_INCHES = (10.0, 3.0)


class Rates(NamedTuple):
    """Rates at one time."""

    minutes: float
    """Since the first report, pauses included."""
    env_steps_per_second: float
    grad_steps_per_second: float


def rates_over_time(reports: Sequence[LearnerReport], *, points: int = _POINTS) -> list[Rates]:
    """Rates between reports; a pause of the run, and the step back of a restored learner, are left out.

    Args:
        reports: oldest first.
        points: about how many rates to give; more reports are taken together.
    """
    spans = [(a, b) for a, b in pairwise(reports) if b.unix_seconds > a.unix_seconds]
    if not spans:
        return []
    longest = _PAUSE_FACTOR * median(b.unix_seconds - a.unix_seconds for a, b in spans)
    usable = [
        (a, b)
        for a, b in spans
        if b.unix_seconds - a.unix_seconds <= longest and b.env_steps >= a.env_steps and b.grad_steps >= a.grad_steps
    ]
    together = max(1, -(-len(usable) // points))
    found = []
    for first in range(0, len(usable), together):
        chunk = usable[first : first + together]
        seconds = sum(b.unix_seconds - a.unix_seconds for a, b in chunk)
        found.append(
            Rates(
                minutes=(chunk[-1][1].unix_seconds - reports[0].unix_seconds) / 60.0,
                env_steps_per_second=sum(b.env_steps - a.env_steps for a, b in chunk) / seconds,
                grad_steps_per_second=sum(b.grad_steps - a.grad_steps for a, b in chunk) / seconds,
            )
        )
    return found


def draw_throughput(rates: Sequence[Rates], path: Path) -> None:
    """Draw both rates over time, as PNG or SVG.

    Raises:
        ConfigError: the file cannot be written.
    """
    with picture_style():
        figure = Figure(figsize=_WIDE_INCHES, layout="constrained")
        panel = figure.subplots()
        minutes = [rate.minutes for rate in rates]
        panel.plot(minutes, [r.grad_steps_per_second for r in rates], color="#0072B2", label="gradient steps a second")
        panel.plot(minutes, [r.env_steps_per_second for r in rates], color="#D55E00", linestyle="--",
                   label="online environment steps a second")  # fmt: skip
        panel.set_xlabel("minutes since the learner's first report")
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False)
        save_figure(figure, path)


def draw_learner(reports: Sequence[LearnerReport], path: Path) -> None:
    """Draw a small panel for each of the learner's metrics over gradient steps, as PNG or SVG.

    Raises:
        ConfigError: the file cannot be written.
    """
    thinned = reports[:: max(1, len(reports) // _POINTS)]
    names = sorted({name for report in thinned for name in report.metrics})
    rows = max(1, -(-len(names) // _COLUMNS))
    with picture_style():
        size = (_SMALL_INCHES[0] * _COLUMNS, _SMALL_INCHES[1] * rows)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for panel, name in zip(panels, names, strict=False):
            points = [(r.grad_steps, r.metrics[name]) for r in thinned if name in r.metrics]
            panel.plot([x for x, _y in points], [y for _x, y in points], color="#0072B2", linewidth=1.0)
            panel.set_title(name, fontsize=8.0)
            panel.tick_params(labelsize=7.0)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        for panel in panels[len(names) :]:
            panel.set_axis_off()
        save_figure(figure, path)
