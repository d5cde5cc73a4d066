"""Time things that are compared, one after the other in turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Timer = Callable[[int], float]
"""Does something so many times and returns the seconds that it took."""


def timer(act: Callable[[], object]) -> Timer:
    """Time a function of this process."""

    def take(repeats: int) -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            act()
        return time.perf_counter() - began

    return take


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one repetition, over rounds."""

    best: float
    median: float


def alternate(sides: Mapping[str, Timer], *, rounds: int, repeats: int) -> dict[str, Timing]:
    """Give every side its turn in every round; the first round is not counted."""
    means: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name, take in sides.items():
            seconds = take(repeats) / repeats
            if index:
                means[name].append(seconds)
    return {name: Timing(min(values), statistics.median(values)) for name, values in means.items()}
