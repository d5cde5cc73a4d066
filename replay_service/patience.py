"""Repeat a request that is safe to repeat until Redis answers, and say who waits for what."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import redis

from replay_service.connection import certificate_problem
from replay_service.errors import RedisUnavailable
from replay_service.outage import SILENT, Outage, outage_of
from replay_service.process import StopSignal, WaitNotice
from replay_service.waits import WaitSeconds

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_LOOK_EVERY_S = 1.0
_NOTICE_PERIOD_S = (10.0 - _LONGEST_PAUSE_S - 2 * _LOOK_EVERY_S) / 2
"""No ten seconds of a wait pass without a line in the log: a try may fail just before the next line is due, and after
the pause one may hang, of which the watch, which has to find it first, speaks after as long again."""

AnswerT = TypeVar("AnswerT")

_log = logging.getLogger(__name__)


class Patience:
    """The waiting of one process for Redis.

    An outage is waited out without end, as a run of days should, with its reason in the log every ten seconds and in
    the metric; it ends when the process is asked to stop.
    """

    def __init__(
        self,
        who: str,
        stop: StopSignal,
        *,
        waits: WaitSeconds | None = None,
        before_each_try: Callable[[], None] | None = None,
    ) -> None:
        """Make the patience of a process.

        Args:
            who: named in the log.
            stop: ends every wait.
            before_each_try: called before each request and each repetition; may mend what keeps Redis from answering.
            waits: counts whole waits by their reason, the time of tries that failed included.
        """
        self._who = who
        self._stop = stop
        self._notice = WaitNotice(who, period_s=_NOTICE_PERIOD_S)
        self._waits = waits
        self._before_each_try = before_each_try or (lambda: None)
        self._watch = _SilenceWatch(who)

    def until_answered(self, ask: Callable[[], AnswerT], *, after_stop_s: float = 0.0) -> AnswerT | None:
        """Call `ask` until it returns.

        Args:
            ask: a request that does no harm when it is carried out twice; if it is many, it calls `asks_again` before
                each, because their time as a whole is no sign of a silent Redis.
            after_stop_s: go on trying for this long after a stop was asked for.

        Returns:
            The answer, or None when the stop came first.

        Raises:
            RedisUnavailable: the server's certificate is not accepted.
            redis.exceptions.RedisError: an error that no waiting mends.
        """
        pause = _FIRST_PAUSE_S
        stopped_at: float | None = None
        known: Outage | None = None
        while True:
            began = time.monotonic()
            self._before_each_try()
            try:
                with self._watch:
                    answer = ask()
            except redis.exceptions.RedisError as error:
                outage = outage_of(error)
                if outage is None:
                    problem = certificate_problem(error)
                    if problem is None:
                        raise
                    raise RedisUnavailable(f"the certificate of Redis is not accepted: {problem}") from error
                if self._stop.is_set():
                    stopped_at = stopped_at or time.monotonic()
                    if time.monotonic() - stopped_at >= after_stop_s:
                        return None
                if outage is not known:
                    _log.warning("%s waits for %s: %s", self._who, outage.text, error)
                    known = outage
                self._notice.waiting(outage.text)
                time.sleep(pause)
                if self._waits is not None:
                    self._waits.add(outage.reason, time.monotonic() - began)
                pause = min(_LONGEST_PAUSE_S, pause * 2)
            else:
                if known is not None:
                    _log.info("%s: Redis answers again after %.1f s", self._who, self._notice.done())
                return answer

    def asks_again(self) -> None:
        """Say, from within what `until_answered` calls, that another request begins."""
        self._watch.restart()


class _SilenceWatch:
    """Says that a request is still without a reply, while the process itself can only wait for it.

    The thread lives as long as the process and sleeps nearly always; it is started by the first request, so never
    before a fork.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._asked_at: float | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._asked_at = time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="silence watch", daemon=True)
            self._thread.start()

    def restart(self) -> None:
        self._asked_at = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._asked_at = None

    def _look(self) -> None:
        notice = WaitNotice(self._who, period_s=_NOTICE_PERIOD_S)
        seen: float | None = None
        while True:
            time.sleep(_LOOK_EVERY_S)
            asked_at = self._asked_at
            if asked_at is None or asked_at != seen:
                notice.done()
            if asked_at is not None:
                notice.waiting(SILENT.text)
            seen = asked_at
