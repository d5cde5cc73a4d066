"""Repeat a request that is safe to repeat until Redis answers, and say who waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from replay_service.connection import REFUSALS, TRANSIENT_ERRORS
from replay_service.process import StopSignal, WaitNotice

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0

AnswerT = TypeVar("AnswerT")

_log = logging.getLogger(__name__)


class Patience:
    """The waiting of one process for Redis.

    An outage is waited out without end, as a run of days should, with a line in the log every ten seconds; it ends
    when the process is asked to stop.
    """

    def __init__(self, who: str, stop: StopSignal, *, on_wait: Callable[[float], None] | None = None) -> None:
        self._who = who
        self._stop = stop
        self._notice = WaitNotice(who)
        self._on_wait = on_wait or (lambda _seconds: None)

    def until_answered(self, ask: Callable[[], AnswerT], *, after_stop_s: float = 0.0) -> AnswerT | None:
        """Call `ask` until it returns.

        Args:
            ask: a request that does no harm when it is carried out twice.
            after_stop_s: go on trying for this long after a stop was asked for.

        Returns:
            The answer, or None when the stop came first.
        """
        pause = _FIRST_PAUSE_S
        stopped_at: float | None = None
        while True:
            try:
                answer = ask()
            except REFUSALS:
                raise
            except TRANSIENT_ERRORS as error:
                if self._stop.is_set():
                    stopped_at = stopped_at or time.monotonic()
                    if time.monotonic() - stopped_at >= after_stop_s:
                        return None
                if pause == _FIRST_PAUSE_S:
                    _log.warning("%s: no answer from Redis, trying again: %s", self._who, error)
                self._notice.waiting("Redis to answer")
                time.sleep(pause)
                self._on_wait(pause)
                pause = min(_LONGEST_PAUSE_S, pause * 2)
            else:
                if pause != _FIRST_PAUSE_S:
                    _log.info("%s: Redis answers again after %.1f s", self._who, self._notice.done())
                return answer
