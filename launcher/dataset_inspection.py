"""`launcher dataset inspect`: what is in a dataset and whether a run would take it, in the terminal or as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from launcher.wording import percent
from replay_service.datasets import DatasetFacts, inspect_dataset, load_dataset
from replay_service.datasets.inspection import ArrayFacts, guess_task
from replay_service.errors import FAILURE_EXIT_CODE, ConfigError, DatasetError
from replay_service.experience import ExperienceSpec
from replay_service.tasks import find_task

_BAR_WIDTH = 40
_BINS = 10
_BYTES_A_MB = 1e6
_ROUNDING_ULPS = 64
"""More than there are bins in any histogram, or two edges would be the same number."""
_LARGEST_DRAWN = 1e300

Bounds = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Expectation:
    """The environment that a dataset is compared with."""

    spec: ExperienceSpec
    bounds: Bounds
    is_guess: bool


def inspect(source: str, *, env: str | None, plot: Path | None, console: Console) -> int:
    """Print what is in a dataset.

    Args:
        source: what `--dataset` would be given.
        env: environment to compare with; None: the task that the dimensions speak for.
        plot: picture of the histograms to write.
        console: where to print.

    Returns:
        0, or 1 when the data are at odds with themselves or a run would refuse them.

    Raises:
        DatasetError: the dataset is missing or damaged.
        EnvironmentUnknown: there is no such environment.
        ConfigError: the picture cannot be written, or cannot show such returns.
    """
    expected = None if env is None else _expectation(env)
    facts = inspect_dataset(
        source, task=None if env is None else find_task(env), bounds=((), ()) if expected is None else expected.bounds
    )
    if expected is None and facts.dimensions is not None:
        task = guess_task(*facts.dimensions)
        if task is not None:
            spec = ExperienceSpec(task.name, task.observation_dim, task.action_dim, task.max_episode_steps)
            expected = Expectation(spec, ((), ()), is_guess=True)
    refusal = None if expected is None else _refusal(source, expected)
    _print_facts(facts, expected, console)
    for name, values in histograms(facts):
        console.print(f"\n{name}", style="bold", highlight=False)
        _print_histogram(values, console)
    if plot is not None:
        from launcher.dataset_picture import draw_histograms

        _require_drawable(histograms(facts))
        draw_histograms(facts, histograms(facts), plot)
        console.print(f"\n{plot}", highlight=False, markup=False, soft_wrap=True)
    findings = [*facts.contradictions(), *([refusal] if refusal else [])]
    console.print()
    for finding in findings:
        console.print(Text(f"BAD  {finding}", style="red"), soft_wrap=True)
    if not findings:
        console.print(_approval(expected), highlight=False, markup=False, soft_wrap=True)
    return FAILURE_EXIT_CODE if findings else 0


def _require_drawable(shown: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Refuse values of which matplotlib cannot make an axis: it adds margins, and steps beyond the last one.

    Raises:
        ConfigError: names the largest.
    """
    largest = max((abs(value) for _name, values in shown for value in values), default=0.0)
    if largest > _LARGEST_DRAWN:
        raise ConfigError(
            f"--plot: expected returns of at most {_LARGEST_DRAWN:g}, which an axis can show, got {largest:g}: leave "
            "--plot out, or look at those rewards"
        )


def histograms(facts: DatasetFacts) -> list[tuple[str, Sequence[float]]]:
    """What is shown as a histogram: its title, and a value an episode."""
    shown: list[tuple[str, Sequence[float]]] = [("episode length, steps", facts.lengths)]
    if facts.stored_returns:
        shown.append(("return, as stored", facts.stored_returns))
    if facts.task is not None:
        shown.append(("return, binary reward recomputed", facts.task.returns))
    return [(name, [value for value in values if np.isfinite(value)]) for name, values in shown]


def bins(values: Sequence[float], count: int = _BINS) -> list[tuple[float, float, int]]:
    """Cut a range into equal bins: (from, to, number of values) each; one bin where they differ by rounding alone."""
    if not values:
        return []
    low, high = min(values), max(values)
    if differ_by_rounding(low, high):
        return [(low, high, len(values))]
    # Of values near the largest number the width is none; their quarters are exact, and so is what is made of them.
    scale = 1.0 if math.isfinite(high - low) else 4.0
    counts, edges = np.histogram(np.asarray(values, dtype=np.float64) / scale, bins=count)
    edges = edges * scale
    return [(float(a), float(b), int(n)) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)]


def differ_by_rounding(low: float, high: float) -> bool:
    """Whether two values are equal but for the last bits, between which no bins fit."""
    return high - low <= _ROUNDING_ULPS * math.ulp(max(abs(low), abs(high)))


def _expectation(env: str) -> Expectation:
    from launcher.up import resolve_environment
    from replay_service.config import RunConfig

    shape = resolve_environment(RunConfig(env=env))
    spec = ExperienceSpec(env, shape.observation_dim, shape.action_dim, shape.max_episode_steps)
    return Expectation(spec, (shape.action_low, shape.action_high), is_guess=False)


def _refusal(source: str, expected: Expectation) -> str | None:
    """Why a run of the environment would refuse the data, in the loader's own words."""
    try:
        load_dataset([source], spec=expected.spec, action_bounds=expected.bounds)
    except DatasetError as error:
        return f"`launcher up --env {expected.spec.env}` refuses it: {error}"
    return None


def _approval(expected: Expectation | None) -> str:
    if expected is None:
        return "of no task that its dimensions speak for: compare it with an environment by --env"
    guess = ", the task that its dimensions speak for" if expected.is_guess else ""
    return f"`launcher up --env {expected.spec.env}` takes it{guess}"


def _print_facts(facts: DatasetFacts, expected: Expectation | None, console: Console) -> None:
    steps = sum(facts.lengths)
    neither = len(facts.lengths) - facts.terminated - facts.truncated
    has_bounds = expected is not None and bool(expected.bounds[0])
    lines = [
        ("file", f"{facts.path} ({facts.form}, {facts.path.stat().st_size / _BYTES_A_MB:.2f} MB)"),
        ("episodes", f"{len(facts.lengths):,}, {steps:,} steps"),
        ("lengths", _spread(facts.lengths)),
        ("ends", f"{facts.terminated:,} terminated, {facts.truncated:,} truncated, {neither:,} just stop"),
        ("observations", _describe(facts.observations)),
        ("actions", f"{_describe(facts.actions)}; {percent_exact(facts.actions_outside)} outside "
                    f"{'the bounds of ' + expected.spec.env if expected and has_bounds else '[-1, 1]'}"),
        ("rewards", _describe(facts.rewards) if facts.stored_returns else "none stored"),
    ]  # fmt: skip
    if facts.stored_returns:
        lines.append(("return, stored", _spread(facts.stored_returns)))
    if facts.task is not None and expected is not None:
        lines.append((f"return as {expected.spec.env}", f"{_spread(facts.task.returns)} (binary reward, recomputed)"))
        lines.append((
            f"success as {expected.spec.env}",
            f"{percent(facts.task.success_any)} at any step, {percent(facts.task.success_final)} at the last step, "
            f"{percent(facts.task.success_fraction)} of steps",
        ))  # fmt: skip
    lines += [(f"metadata: {name}", text) for name, text in facts.metadata.items()]
    width = max(len(name) for name, _text in lines)
    for name, text in lines:
        console.print(Text(f"{name:>{width}}  {text}"), highlight=False, soft_wrap=True)


def percent_exact(share: float) -> str:
    """A share with two decimals, and a word for one that they would hide."""
    return "less than 0.01 %" if 0.0 < share < 1e-4 else f"{100 * share:.2f} %"


def _describe(array: ArrayFacts) -> str:
    width = "/".join(map(str, sorted(array.widths)))
    kind = "/".join(sorted(array.dtypes))
    values = f"{width} value{'' if width == '1' else 's'} a step, {kind}"
    span = f", {array.lowest:g} to {array.highest:g}" if array.values > array.not_finite else ""
    return values + span + (f", {array.not_finite:,} NaN or infinite" if array.not_finite else "")


def _spread(values: Sequence[float]) -> str:
    finite = [value for value in values if np.isfinite(value)]
    lost = f"{len(values) - len(finite):,} not finite" if len(finite) < len(values) else ""
    if not finite:
        return lost
    mean = float(np.sum(np.asarray(finite) / len(finite)))  # divided first: a sum may be larger than any number
    return f"{min(finite):g} to {max(finite):g}, mean {mean:g}" + (f"; {lost}" if lost else "")


def _print_histogram(values: Sequence[float], console: Console) -> None:
    found = bins(values)
    most = max((count for _low, _high, count in found), default=0)
    block = "#" if console.options.ascii_only else "█"
    for low, high, count in found:
        bar = block * max(round(_BAR_WIDTH * count / most), 1 if count else 0)
        label = f"{low:>10.5g}" if len(found) == 1 else f"{low:>10.5g} to {high:<10.5g}"
        console.print(Text.assemble(label, "  ", (bar, "cyan"), f" {count:,}" if count else ""), highlight=False)
