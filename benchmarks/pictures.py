"""Draw the pictures of README.md, docs/results.md and docs/trials.md from the CSV files beside them.

    python -m benchmarks.pictures

To be given after any change of `docs/results/*.csv`; a test holds every picture to its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.arguments import take_no_arguments
from launcher.learning_curves import EvaluationRow, make_curves, read_evaluations
from launcher.plot import Reference, draw_curves

RESULTS = Path(__file__).parents[1] / "docs" / "results"
_PANELS = ("door", "relocate", "pen")
"""In the order of the tables."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What is in one picture."""

    rows: tuple[str, ...]
    """CSV files."""
    groups: tuple[str, ...] | None = None
    """Those that are shown, in this order; None: all."""
    env: str | None = None
    """The only task that is shown; None: all."""
    references: str | None = None
    """CSV file of policies without an env step, one preset: their mean is a horizontal line a panel."""


PICTURES = {
    "strong.png": Picture(("strong.csv",), references="behaviour-cloning.csv"),
    "strong-again.png": Picture(("strong.csv", "strong-again.csv"), groups=("strong", "strong, run again")),
    "actors.png": Picture(("actors.csv",)),
    "strong-without.png": Picture(("strong-without.csv",)),
    "strong-shipped.png": Picture(("strong-shipped.csv",)),
    "strong-on.png": Picture(("strong-on.csv",)),
    "strong-on-changed.png": Picture(
        ("strong-on.csv", "strong-on-changed.csv"),
        groups=(
            "25 wobbly",
            "25 wobbly, std from 0.08",
            "25 wobbly, temperature 2",
            "25 wobbly, uniform batches",
            "25 wobbly, once more and longer",
            "that run, resumed unchanged",
            "that run, resumed with uniform batches",
        ),
    ),
    "published.png": Picture(("published.csv",), references="behaviour-cloning.csv"),
    "ablations.png": Picture(
        ("published.csv", "ablations.csv"),
        groups=("published, batch 256", "weights with Z(s)", "V(s) by one sample", "online from scratch"),
        env="pen",
    ),
    "changes.png": Picture(("changes.csv",)),
    "relocate-ingredients.png": Picture(("relocate-ingredients.csv",)),
    "door-ingredients.png": Picture(("door-ingredients.csv",)),
    "pen-ingredients.png": Picture(("pen-ingredients.csv",)),
    "pen-trials.png": Picture(("strong.csv", "pen-trials.csv"), env="pen"),
}


def draw(name: str, folder: Path) -> Path:
    """Draw one of `PICTURES` into a folder.

    Raises:
        EvaluationsError: a CSV file is missing or damaged.
        ConfigError: the picture cannot be written.
    """
    picture = PICTURES[name]
    rows = [row for file in picture.rows for row in read_evaluations(RESULTS / file)]
    if picture.env is not None:
        rows = [row for row in rows if row.env == picture.env]
    if picture.groups is not None:
        rows = [row for group in picture.groups for row in rows if row.preset == group]
    rows.sort(key=lambda row: _PANELS.index(row.env))
    draw_curves(
        make_curves(rows, metric="success_final", axis="env_steps"),
        folder / name,
        metric="success_final",
        axis="env_steps",
        references=[] if picture.references is None else _references(read_evaluations(RESULTS / picture.references)),
    )
    return folder / name


def _references(rows: Sequence[EvaluationRow]) -> list[Reference]:
    return [
        Reference(
            f"{of_env[0].preset}, no env steps",
            round(fmean(row.success_final or 0.0 for row in of_env), 2),
            of_env[0].env,
        )
        for of_env in ([row for row in rows if row.env == env] for env in _PANELS)
        if of_env
    ]


def main() -> None:
    take_no_arguments(__doc__)
    for name in PICTURES:
        print(draw(name, RESULTS))


if __name__ == "__main__":
    main()
