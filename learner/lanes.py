"""Lanes: threads that each carry a share of a batch through the whole gradient step.

Torch splits every single operation over its threads and lets them wait for each other at the end of each: some two
hundred times a step. A lane takes its rows through all layers, forward and backward, and meets the others three times
a step. Torch lets go of Python's lock while it computes, so lanes are plain threads.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable

import torch

FEWEST_ROWS = 128
"""Rows of a lane that pay: measured on two cores, two lanes save an eighth at 128 rows each and two fifths at 512."""

Work = Callable[[int], None]
"""What a lane does, given its number."""


class Lanes:
    """A fixed number of lanes; the calling thread is the first of them.

    Args:
        count: how many, at least 1. One lane is the caller alone.
        fewest_rows: a lane with fewer costs more than it carries; smaller batches use fewer lanes.

    Example:
        lanes = Lanes(2)
        lanes.run(lambda lane: passes[lane].forward(shares[lane]))
    """

    def __init__(self, count: int = 1, *, fewest_rows: int = FEWEST_ROWS) -> None:
        if count < 1:
            raise ValueError(f"expected at least 1 lane, got {count}")
        self._count = count
        self._fewest_rows = fewest_rows
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._work: list[queue.SimpleQueue[Work | None]] = [queue.SimpleQueue() for _ in range(count - 1)]
        for lane, work in enumerate(self._work, start=1):
            threading.Thread(target=_carry, args=(lane, work, self._done), name=f"lane-{lane}", daemon=True).start()

    def run(self, work: Work) -> None:
        """Let every lane do its part, without gradients; returns when all have. An error of any lane is raised."""
        for each in self._work:
            each.put(work)
        try:
            with torch.no_grad():
                work(0)
        finally:
            errors = [error for error in (self._done.get() for _ in self._work) if error is not None]
        if errors:
            raise errors[0]

    def shares(self, batch_size: int) -> list[slice]:
        """Rows of each lane that takes part: as even as can be, in order."""
        used = max(1, min(self._count, batch_size // self._fewest_rows))
        bounds = [batch_size * i // used for i in range(used + 1)]
        return [slice(first, last) for first, last in itertools.pairwise(bounds)]

    def close(self) -> None:
        """End the threads; they also end with the process."""
        for each in self._work:
            each.put(None)


def _carry(lane: int, todo: queue.SimpleQueue[Work | None], done: queue.SimpleQueue[BaseException | None]) -> None:
    with torch.no_grad():  # grad mode belongs to a thread
        while (work := todo.get()) is not None:
            try:
                work(lane)
            except BaseException as error:
                done.put(error)
            else:
                done.put(None)
            del work
