"""Means of the update metrics between two reports, without waiting for the device at every step."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from learner.update import UpdateMetrics


class MetricMeans:
    """Adds up metrics on the device; reads them back once a report."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sums: torch.Tensor | None = None
        self._count = 0
        self._began = clock()

    def add(self, metrics: torch.Tensor) -> None:
        """Take in one gradient step: (M,) in the order of `UpdateMetrics`, read before the next operation is queued."""
        if self._sums is None:
            self._sums = torch.zeros_like(metrics)
        self._sums += metrics
        self._count += 1

    @property
    def seconds(self) -> float:
        """Time since the last `take`."""
        return self._clock() - self._began

    def take(self) -> tuple[dict[str, float], int, float]:
        """Read the means and begin anew.

        Returns:
            Metric name -> mean (empty when no step was taken), the number of steps, and the seconds they span.
        """
        means: dict[str, float] = {}
        if self._sums is not None:
            values = (self._sums / self._count).tolist()
            means = dict(zip(UpdateMetrics._fields, values, strict=True))
        taken = (means, self._count, self.seconds)
        self._sums, self._count, self._began = None, 0, self._clock()
        return taken
