"""Wait for room on a full disk rather than crash: what is written is written whole, or not yet."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import TypeVar

from replay_service.process import StopSignal, WaitNotice
from replay_service.waits import WaitSeconds

_PAUSE_S = 2.0
_FULL = (errno.ENOSPC, errno.EDQUOT)

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)


def is_full(error: OSError) -> bool:
    """Whether an error says that the disk, or the user's share of it, is full."""
    return error.errno in _FULL


def wait_for_space(
    write: Callable[[], ResultT], who: str, *, stop: StopSignal, waits: WaitSeconds | None = None
) -> ResultT | None:
    """Call `write` until the disk has room for it.

    Args:
        write: can be called again after it failed.
        who: named in the log.
        stop: ends the wait.
        waits: counts it, under the reason `disk`.

    Returns:
        What `write` returned, or None when a stop was asked for while the disk was full.

    Raises:
        OSError: another error than a full disk.
    """
    notice = WaitNotice(who, period_s=10.0 - _PAUSE_S)
    is_first = True
    while True:
        try:
            return write()
        except OSError as error:
            if not is_full(error):
                raise
            if is_first:
                _log.error("%s waits for room on the disk: %s", who, error)
                is_first = False
        if stop.is_set():
            _log.error("%s ends without having written: the disk is full", who)
            return None
        notice.waiting("room on the disk")
        stop.wait(_PAUSE_S)
        if waits is not None:
            waits.add("disk", _PAUSE_S)
