"""Name what keeps Redis from answering: whether waiting mends it, why it is, and what a person can do."""

from __future__ import annotations

import re
from dataclasses import dataclass

import redis

from replay_service.connection import REFUSALS, TRANSIENT_ERRORS, certificate_problem


@dataclass(frozen=True, slots=True)
class Outage:
    """A state of Redis that may pass."""

    reason: str
    """One of `OUTAGE_REASONS`: a label of the metric."""
    text: str
    """What is waited for, to be read after 'waits for'."""


_MEMORY = Outage(
    "redis_memory",
    "Redis to have memory again (it is at its limit and refuses writes: stop the run and resume it with a larger "
    "--replay.max-memory-mb, or raise maxmemory of your own Redis)",
)
_DISK = Outage(
    "redis_disk",
    "Redis to write its file again (it refuses writes until then, mostly because its disk is full: free some space)",
)
_LOADING = Outage("redis_loading", "Redis to load its data")
_READ_ONLY = Outage("redis_read_only", "Redis to take writes (it is a replica, or lacks its replicas)")
_BUSY = Outage("redis_busy", "Redis to end a script")
_SILENT = Outage("redis_silent", "Redis to reply (it is paused or overloaded, or the network drops what it says)")
_GONE = Outage("redis_gone", "Redis to answer (nobody listens there, or the network does not lead there)")

OUTAGE_REASONS = tuple(o.reason for o in (_MEMORY, _DISK, _LOADING, _READ_ONLY, _BUSY, _SILENT, _GONE))

SILENT = _SILENT

_BY_CODE = {
    "MISCONF": _DISK, "NOREPLICAS": _READ_ONLY, "MASTERDOWN": _READ_ONLY, "READONLY": _READ_ONLY, "BUSY": _BUSY,
    "OOM": _MEMORY, "LOADING": _LOADING,
}  # fmt: skip
"""Codes of Redis's own errors, for those that keep them in their text: redis-py gives some a type instead."""

# The code stands first, unless redis-py has put a pipeline's command before it, or Redis the end of a transaction.
_CODE = re.compile(rf"(?:^|caused error: |because of: )({'|'.join(_BY_CODE)})\b")


def outage_of(error: Exception) -> Outage | None:
    """The outage behind an error of redis-py, or None when waiting does not mend it."""
    if isinstance(error, REFUSALS) or certificate_problem(error) is not None:
        return None
    match error:
        case redis.exceptions.OutOfMemoryError():
            return _MEMORY
        case redis.exceptions.BusyLoadingError():
            return _LOADING
        case redis.exceptions.ReadOnlyError() | redis.exceptions.MasterDownError():
            return _READ_ONLY
        case redis.exceptions.TimeoutError():
            return _SILENT
        case redis.exceptions.ResponseError():
            code = _CODE.search(str(error))
            return _BY_CODE[code[1]] if code else None
    return _GONE if isinstance(error, TRANSIENT_ERRORS) else None
