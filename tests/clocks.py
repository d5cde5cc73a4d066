"""Clocks that only a test moves, so that a wait of a minute takes no time and is the same on every machine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Self


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class SharedTime:
    """Stands in for the module `time` in code of several threads: time passes when all of them sleep.

    One thread runs at a time; when it sleeps, the one that wakes first is the next. Threads that were there before,
    but for the one that makes it, sleep as ever: they are what other tests have left.

    Args:
        threads: how many sleep here.
    """

    def __init__(self, threads: int = 1) -> None:
        self.now = 0.0
        self._threads = threads
        self._strangers = set(threading.enumerate()) - {threading.current_thread()}
        self._wakes_at: dict[int, float] = {}
        self._asleep = threading.Condition()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        me = threading.get_ident()
        if threading.current_thread() in self._strangers:
            return time.sleep(seconds)
        with self._asleep:
            self._wakes_at[me] = self.now + seconds
            while me in self._wakes_at:
                if len(self._wakes_at) == self._threads:
                    first = min(self._wakes_at, key=self._wakes_at.__getitem__)
                    self.now = self._wakes_at.pop(first)
                    self._asleep.notify_all()
                else:
                    self._asleep.wait()
        return None


class LinesInTime(logging.Handler):
    """Notes, as a context, when each line goes into the log."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._told_at = [clock()]

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._told_at.append(self._clock())

    def longest_silence(self) -> float:
        """Seconds without a line, the time until now included."""
        return max(after - before for before, after in pairwise([*self._told_at, self._clock()]))
