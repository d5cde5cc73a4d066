"""Draw learning curves: a panel an environment, a colour a group, readable in print and by the colour-blind.

The same curves give the same bytes: matplotlib's own settings, no date and no program name in the file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from launcher.curve_axes import Axis, Metric
from launcher.learning_curves import Curve
from launcher.whole_file import whole_file
from replay_service.errors import ConfigError
from replay_service.tasks import TASKS

FORMATS = (".png", ".svg")

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, in an order in which neighbours also differ in grey."""
_LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "v", "P", "X", "D", "*", "<")
"""More of them than colours: a colour that comes again has another one."""
_METRIC_NAMES: dict[Metric, str] = {
    "success_final": "success at the last step",
    "success_any": "success at any step",
    "success_fraction": "share of steps with success",
    "episode_return": "episode return",
}
_AXIS_NAMES: dict[Axis, str] = {"env_steps": "online environment steps", "grad_steps": "gradient steps"}
PANEL_INCHES = (4.8, 3.4)
_LEGEND_LINE_INCHES = 0.19
_LEGEND_CHARACTERS = 58
_FEWEST_SEEDS_OF_A_MEAN = 3
"""Two seeds are drawn as two lines: their mean may be a curve that no run ever had."""
_SETTINGS: dict[str, Any] = {
    "figure.dpi": 200.0,
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "legend.fontsize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#D8D8D8",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "svg.hashsalt": "awac-online",
    "text.parse_math": False,  # a dollar in a label is a dollar
}


@dataclass(frozen=True, slots=True)
class Reference:
    """A horizontal line to compare with."""

    name: str
    value: float
    env: str | None = None
    """Panel that it belongs to; None: every one."""


def check_picture_name(path: Path, option: str = "--output") -> None:
    """Refuse a file whose format cannot be drawn.

    Raises:
        ConfigError: names the formats.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{option}: expected a file that ends in {' or '.join(FORMATS)}, got {path}")


def parse_reference(text: str, envs: Sequence[str]) -> Reference:
    """Read NAME=VALUE, or ENV:NAME=VALUE for one panel alone.

    Raises:
        ConfigError: the text has another form.
    """
    name, _sign, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not name or not abs(value) < float("inf"):
        raise ConfigError(f"--reference: expected NAME=NUMBER or ENV:NAME=NUMBER, as in paper=0.98, got {text!r}")
    env, colon, own = name.partition(":")
    if colon and env in envs:
        return Reference(own, value, env)
    if colon and env in TASKS:
        raise ConfigError(f"--reference: expected one of the panels {', '.join(dict.fromkeys(envs))}, got {text!r}")
    return Reference(name, value)


def draw_curves(
    curves: Sequence[Curve], path: Path, *, metric: Metric, axis: Axis, references: Sequence[Reference] = ()
) -> None:
    """Draw curves into a PNG or SVG file; a reader never sees half a file.

    Args:
        curves: at least one.
        path: its ending chooses the format.
        metric: what the curves show.
        axis: what their points are counted in.
        references: horizontal lines.

    Raises:
        ConfigError: the format is unknown, or the file cannot be written.
    """
    check_picture_name(path)
    with picture_style():
        save_figure(_figure(curves, metric, axis, references), path)


def picture_style() -> AbstractContextManager[None]:
    """The look of every picture, whatever a matplotlibrc of this machine says; its settings come back afterwards."""
    return matplotlib.style.context(["default", _SETTINGS])


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whose bytes do not depend on when and by what it is written.

    Raises:
        ConfigError: the file cannot be written.
    """
    metadata = {"Date": None, "Creator": None} if path.suffix.lower() == ".svg" else {"Software": None}
    with whole_file(path) as partial:
        figure.savefig(partial, metadata=metadata)


def _figure(curves: Sequence[Curve], metric: Metric, axis: Axis, references: Sequence[Reference]) -> Figure:
    envs = list(dict.fromkeys(curve.env for curve in curves))
    labels = list(dict.fromkeys(curve.label for curve in curves))
    shown_in = {env: [curve for curve in curves if curve.env == env] for env in envs}
    lines = max(map(_legend_lines, shown_in.values())) + len(references) + 3
    width, height = PANEL_INCHES
    size = (width * len(envs), height + _LEGEND_LINE_INCHES * lines)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(envs), squeeze=False)[0]
    for panel, env in zip(panels, envs, strict=True):
        shown = shown_in[env]
        for curve in shown:
            _draw(panel, curve, labels.index(curve.label), _legend_text(curve, with_episodes=not _alike(shown)))
        for reference in references:
            if reference.env in (None, env):
                panel.axhline(reference.value, color="#555555", linestyle=":", linewidth=1.2,
                              label=_shown(f"{reference.name} ({reference.value:g})"))  # fmt: skip
        _explain(panel, shown)
        panel.set_title(env)
        panel.set_xlabel(_AXIS_NAMES[axis])
        panel.set_ylabel(_METRIC_NAMES[metric] + (f", of {_episodes(shown[0])} episodes" if _alike(shown) else ""))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        if metric != "episode_return":
            panel.set_ylim(-0.02, 1.02)
            panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False, handlelength=3.0)
    return figure


def _draw(panel: Axes, curve: Curve, number: int, label: str) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    style: dict[str, Any] = {
        "color": colour,
        "linestyle": _LINES[number % len(_LINES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 3.5,
    }
    if is_mean(curve):
        panel.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        for seed in curve.seeds:
            panel.plot(seed.x, seed.y, color=colour, linewidth=0.5, alpha=0.6)
        panel.plot(curve.x, curve.mean, **style, linewidth=1.8, label=label)
    else:
        for index, seed in enumerate(curve.seeds):
            panel.plot(seed.x, seed.y, **style, linewidth=1.8 if index == 0 else 1.1, label=None if index else label)
    panel.plot(*_offline_points(curve), marker="D", markersize=8, markerfacecolor="none", markeredgecolor=colour,
               linestyle="none", clip_on=False, zorder=5)  # fmt: skip


def _offline_points(curve: Curve) -> tuple[list[int], list[float]]:
    """Where the policy stood before the first online step: the mean, or each seed where there is no mean."""
    if curve.offline is None:
        return [], []
    at, mean = curve.offline
    heights = [mean] if is_mean(curve) else [seed.y[seed.x.index(at)] for seed in curve.seeds]
    return [at] * len(heights), heights


def _explain(panel: Axes, curves: Sequence[Curve]) -> None:
    """Name what is not a group: the offline point, the band, the thin lines."""
    if any(curve.offline is not None for curve in curves):
        panel.plot([], [], marker="D", markersize=7, markerfacecolor="none", markeredgecolor="#444444",
                   linestyle="none", label="after offline pretraining, before online steps")  # fmt: skip
    if any(map(is_mean, curves)):
        panel.fill_between([], [], color="#888888", alpha=0.3, linewidth=0, label="band: lowest to highest seed")
        panel.plot([], [], color="#888888", linewidth=0.5, label="one seed")


def _legend_lines(shown: Sequence[Curve]) -> int:
    return sum(_legend_text(curve, with_episodes=not _alike(shown)).count("\n") + 1 for curve in shown)


def _legend_text(curve: Curve, *, with_episodes: bool) -> str:
    # A legend wider than its panel would take the panel's room.
    text = describe_group(curve) if with_episodes else f"{curve.label} ({_seeds(curve)})"
    return _shown(textwrap.fill(text, _LEGEND_CHARACTERS))


def _shown(label: str) -> str:
    """What matplotlib does not leave out of a legend, as it does a name that begins with an underscore."""
    return f" {label}" if label.startswith("_") else label


def describe_group(curve: Curve) -> str:
    """What a curve is, in words."""
    return f"{curve.label} ({_seeds(curve)}, {_episodes(curve)} episodes an evaluation)"


def is_mean(curve: Curve) -> bool:
    """Whether a curve is drawn as a mean and a band."""
    return len(curve.seeds) >= _FEWEST_SEEDS_OF_A_MEAN


def _seeds(curve: Curve) -> str:
    number = len(curve.seeds)
    if not is_mean(curve):
        return "1 seed" if number == 1 else f"{number} seeds, a line each"
    return f"mean of {number} seeds" + (", where all have been judged" if curve.points_left_out else "")


def _episodes(curve: Curve) -> str:
    fewest, most = curve.episodes
    return str(fewest) if fewest == most else f"{fewest} to {most}"


def _alike(curves: Sequence[Curve]) -> bool:
    """Whether all evaluations behind a panel have the same number of episodes: then its axis says so, once."""
    return len({count for curve in curves for count in curve.episodes}) == 1
