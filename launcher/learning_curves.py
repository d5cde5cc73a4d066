"""Rows of `evaluations.csv` -> learning curves; pure but for reading and writing the files.

Runs of one environment and one label (the preset, unless the user gives another) are seeds of one curve, if they were
made with the same settings. Its mean and its band are taken only at evaluation points that *every* seed of the group
has: a mean over whichever seeds happen to be there would jump where a seed ends. The seeds' own lines keep all their
points.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from launcher.curve_axes import Axis, Metric
from launcher.run_directory import RunDirectory
from launcher.run_settings import OF_THE_EVALUATION, OF_THE_MACHINE, describe_differences, read_settings
from launcher.whole_file import whole_file
from replay_service.errors import UserError
from replay_service.records import EVALUATIONS_FILE

_VERSION_COLUMN = "policy_version"
_FIRST_TRAINED_VERSION = 1
_MAY_DIFFER_BETWEEN_SEEDS = ("seed", "num_env_steps", *OF_THE_MACHINE, *OF_THE_EVALUATION)


class EvaluationsError(UserError):
    """Evaluations are missing, damaged, or cannot be put into one picture."""


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One evaluation of one run; the fields are the columns of the merged file, in order."""

    env: str
    preset: str
    """The preset, or the label that the user gave in its place."""
    seed: int
    env_steps: int
    grad_steps: int
    success_any: float | None
    success_final: float | None
    success_fraction: float | None
    episode_return: float
    episodes: int


COLUMNS = tuple(item.name for item in fields(EvaluationRow))


@dataclass(frozen=True, slots=True)
class SeedCurve:
    """One seed's line, at all its evaluation points."""

    seed: int
    x: tuple[int, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """One group: mean, lowest and highest seed at each point that all its seeds have."""

    env: str
    label: str
    x: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: tuple[SeedCurve, ...]
    episodes: tuple[int, int]
    """Fewest and most episodes of an evaluation."""
    offline: tuple[int, float] | None
    """The point before the first online step: its place on the axis, and the mean there."""
    points_left_out: int
    """Points that some seeds have and others lack."""


def read_evaluations(path: Path, *, label: str | None = None) -> list[EvaluationRow]:
    """Read a run's evaluations, from the offline point (policy version 1) on.

    Args:
        path: a run directory, or a CSV file of one or several runs. The untrained policy's row is told by a column
            `policy_version`; a file without that column is taken as it is.
        label: takes the preset's place.

    Raises:
        EvaluationsError: the file is missing or damaged, lacks a column, or holds no evaluation.
    """
    file = path / EVALUATIONS_FILE if path.is_dir() else path
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise EvaluationsError(
                    f"{file}: expected the columns {', '.join(COLUMNS)}, missing {', '.join(missing)}"
                )
            rows = [_row(values, f"{file}, line {reader.line_num}") for values in reader if _is_trained(values)]
    except FileNotFoundError as error:
        hint = ": the run has not evaluated yet, or it is no run" if path.is_dir() else ""
        raise EvaluationsError(f"{file}: no such file{hint}") from error
    except OSError as error:
        raise EvaluationsError(f"{file}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise EvaluationsError(f"{file}: expected a CSV file: {error}") from error
    if not rows:
        raise EvaluationsError(f"{file}: expected at least one evaluation of a trained policy, got none")
    return rows if label is None else [replace(row, preset=label) for row in rows]


def refuse_to_overwrite(sources: Iterable[Path], written: Path | None, option: str) -> None:
    """Refuse an output that is what is read, or the record of any run.

    Args:
        sources: run directories and CSV files.
        written: the output; None: there is none.
        option: that named it.

    Raises:
        EvaluationsError: names the file.
    """
    if written is None:
        return
    read = {(path / EVALUATIONS_FILE if path.is_dir() else path).resolve() for path in sources}
    if written.resolve() in read or (written.name == EVALUATIONS_FILE and RunDirectory(written.parent).holds_run):
        raise EvaluationsError(f"{option}: expected a file to write, got {written}, which holds a run's evaluations")


def merge(sources: Sequence[tuple[str, Sequence[EvaluationRow]]]) -> list[EvaluationRow]:
    """Put the rows of several sources together, in order.

    Args:
        sources: name and rows of each.

    Raises:
        EvaluationsError: two sources hold the same seed of the same group, which would count it twice.
    """
    owner: dict[tuple[str, str, int], str] = {}
    merged: list[EvaluationRow] = []
    for name, rows in sources:
        for env, label, seed in {(row.env, row.preset, row.seed): None for row in rows}:
            if (env, label, seed) in owner:
                raise EvaluationsError(
                    f"seed {seed} of {env}, {label} is in {owner[env, label, seed]} and in {name}: leave one out, or "
                    "tell them apart with one --label for each run"
                )
            owner[env, label, seed] = name
        merged.extend(rows)
    return merged


def refuse_other_settings(sources: Sequence[tuple[Path, Sequence[EvaluationRow]]]) -> None:
    """Refuse runs of one group that were made with different settings: their mean would be of two things.

    Args:
        sources: path and rows of each. A CSV file, or a folder without a config.toml, has no settings to compare.

    Raises:
        EvaluationsError: names two runs and the first settings in which they differ.
        ConfigError: a run's configuration cannot be read.
    """
    first: dict[tuple[str, str], tuple[Path, dict[str, object]]] = {}
    for path, rows in sources:
        run = RunDirectory(path)
        if not run.holds_run:
            continue
        settings = read_settings(run.config)
        for env, label in {(row.env, row.preset): None for row in rows}:
            other, its_settings = first.setdefault((env, label), (path, settings))
            found = describe_differences(its_settings, settings, may_differ=_MAY_DIFFER_BETWEEN_SEEDS)
            if found:
                raise EvaluationsError(
                    f"{other} and {path} are no seeds of one curve ({env}, {label}), because they differ in {found}: "
                    "tell them apart with one --label for each run"
                )


def make_curves(rows: Iterable[EvaluationRow], *, metric: Metric, axis: Axis) -> list[Curve]:
    """Group rows into curves, in order of first appearance.

    Args:
        rows: of any number of environments, labels and seeds; of several rows of a seed at one point the last counts.
        metric: what to show.
        axis: what the points are counted in.

    Raises:
        EvaluationsError: a group lacks the metric, or its seeds have no point in common.
    """
    groups: dict[tuple[str, str], dict[int, dict[int, EvaluationRow]]] = {}
    for row in rows:
        groups.setdefault((row.env, row.preset), {}).setdefault(row.seed, {})[getattr(row, axis)] = row
    return [_curve(env, label, seeds, metric, axis) for (env, label), seeds in groups.items()]


def write_rows(path: Path, rows: Iterable[EvaluationRow]) -> None:
    """Write rows as CSV with exactly the columns of `EvaluationRow`; a reader never sees half a file.

    Raises:
        ConfigError: the file cannot be written.
    """
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _curve(env: str, label: str, seeds: dict[int, dict[int, EvaluationRow]], metric: Metric, axis: Axis) -> Curve:
    values: dict[int, dict[int, float]] = {}
    for seed, points in seeds.items():
        values[seed] = {x: y for x, row in points.items() if (y := getattr(row, metric)) is not None}
        if len(values[seed]) < len(points):
            raise EvaluationsError(
                f"{env}, {label}, seed {seed}: has no {metric}, because the environment does not say what success is: "
                "choose --metric episode_return"
            )
    everywhere = set.intersection(*(set(points) for points in values.values()))
    anywhere = set.union(*(set(points) for points in values.values()))
    if not everywhere:
        raise EvaluationsError(
            f"{env}, {label}: seeds {', '.join(map(str, sorted(seeds)))} have no evaluation point in common on the "
            f"axis {axis}: choose another --x, or show them as groups of their own with --label"
        )
    x = tuple(sorted(everywhere))
    columns = [[points[at] for points in values.values()] for at in x]
    mean = tuple(math.fsum(column) / len(column) for column in columns)
    episodes = [row.episodes for points in seeds.values() for row in points.values()]
    is_offline = [all(points[at].env_steps == 0 for points in seeds.values()) for at in x]
    return Curve(
        env=env,
        label=label,
        x=x,
        mean=mean,
        low=tuple(min(column) for column in columns),
        high=tuple(max(column) for column in columns),
        seeds=tuple(
            SeedCurve(seed, tuple(sorted(points)), tuple(points[at] for at in sorted(points)))
            for seed, points in sorted(values.items())
        ),
        episodes=(min(episodes), max(episodes)),
        offline=next(((at, y) for at, y, offline in zip(x, mean, is_offline, strict=True) if offline), None),
        points_left_out=len(anywhere) - len(everywhere),
    )


def _is_trained(values: dict[str, str]) -> bool:
    """Whether a row is of version 1 or later; a damaged version is left for nobody to trip over."""
    version = values.get(_VERSION_COLUMN) or ""
    return not version.isdigit() or int(version) >= _FIRST_TRAINED_VERSION


def _row(values: dict[str, str], where: str) -> EvaluationRow:
    return EvaluationRow(
        env=_text(values["env"], "env", where),
        preset=_text(values["preset"], "preset", where),
        seed=_count(values["seed"], "seed", where),
        env_steps=_count(values["env_steps"], "env_steps", where),
        grad_steps=_count(values["grad_steps"], "grad_steps", where),
        success_any=_share(values["success_any"], "success_any", where),
        success_final=_share(values["success_final"], "success_final", where),
        success_fraction=_share(values["success_fraction"], "success_fraction", where),
        episode_return=_number(values["episode_return"], "episode_return", where),
        episodes=_count(values["episodes"], "episodes", where),
    )


def _text(value: str | None, name: str, where: str) -> str:
    if not value:
        raise EvaluationsError(f"{where}: {name}: expected a name, got nothing")
    return value


def _count(value: str | None, name: str, where: str) -> int:
    try:
        found = int(value or "")
    except ValueError:
        found = -1
    if found < 0:
        raise EvaluationsError(f"{where}: {name}: expected a whole number from 0 on, got {value!r}")
    return found


def _number(value: str | None, name: str, where: str) -> float:
    try:
        found = float(value or "")
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise EvaluationsError(f"{where}: {name}: expected a finite number, got {value!r}")
    return found


def _share(value: str | None, name: str, where: str) -> float | None:
    if value == "":
        return None  # the environment has no notion of success
    found = _number(value, name, where)
    if not 0.0 <= found <= 1.0:
        raise EvaluationsError(f"{where}: {name}: expected a share from 0 to 1, got {value!r}")
    return found
