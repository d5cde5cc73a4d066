"""Draw the histograms of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from launcher.dataset_inspection import differ_by_rounding
from launcher.plot import PANEL_INCHES, check_picture_name, picture_style, save_figure
from replay_service.datasets import DatasetFacts

_BINS = 30


def draw_histograms(facts: DatasetFacts, histograms: Sequence[tuple[str, Sequence[float]]], path: Path) -> None:
    """Draw a panel for each histogram, a value an episode.

    Args:
        facts: for the title.
        histograms: title and values of each; one without values stays empty.
        path: PNG or SVG to write.

    Raises:
        ConfigError: the format is unknown, or the file cannot be written.
    """
    check_picture_name(path, "--plot")
    with picture_style():
        figure = Figure(figsize=(PANEL_INCHES[0] * len(histograms), PANEL_INCHES[1]), layout="constrained")
        figure.suptitle(f"{Path(facts.source).name}: {len(facts.lengths):,} episodes, {sum(facts.lengths):,} steps")
        panels = figure.subplots(1, len(histograms), squeeze=False)[0]
        for panel, (title, values) in zip(panels, histograms, strict=True):
            panel.hist(values, bins=_BINS, range=_range(values), color="#0072B2")
            panel.set_xlabel(title)
            panel.set_ylabel("episodes")
            panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        save_figure(figure, path)


def _range(values: Sequence[float]) -> tuple[float, float] | None:
    """Room for bins around values that are one number; None where they have room between themselves."""
    if not values or not differ_by_rounding(min(values), max(values)):
        return None
    margin = max(0.5, 1e-3 * abs(values[0]))
    return values[0] - margin, values[0] + margin
