"""One fetch of the weights a pool: the first actor that needs a version asks Redis, the others read it from memory.

The slot is a file without a name, made before the pool forks and inherited by its actors; it is gone when the last of
them ends, however it ends. Record locks guard it: the kernel gives up those of an actor that dies.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from replay_service import wire

_HEADER = struct.Struct("<QQ")  # policy version, bytes of the message; version 0: nothing is here
_LONGEST_WAIT_S = 2.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.04


class SharedWeights:
    """The slot. Make it in the pool; use it in its actors."""

    def __init__(self) -> None:
        # A descriptor for the life of the process. In memory where the system can, else in the page cache.
        if sys.platform == "linux":
            self._descriptor = os.memfd_create("weights")
        else:
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())

    def newest(self, version: int, fetch: Callable[[], bytes | None]) -> bytes | None:
        """The message of this version or a later one.

        Args:
            version: that is known to be published.
            fetch: asks Redis for the newest message.

        Raises:
            WireError: what Redis holds is no valid message; it is not handed on.
        """
        deadline = time.monotonic() + _LONGEST_WAIT_S
        pause = _SHORTEST_PAUSE_S
        while True:
            # Looked at without a lock first: readers that came too early must not keep the one away that fetches.
            if self._header()[0] >= version:
                with self._locked(fcntl.LOCK_SH) as held:
                    found = self._read(version) if held else None
                if found is not None:
                    return found
            with self._locked(fcntl.LOCK_EX) as held:
                if held:
                    return self._read(version) or self._fetch(fetch)
            if time.monotonic() > deadline:
                return fetch()  # the one that has the slot may wait for Redis: each for itself then
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE_S, pause * 1.5)

    def _fetch(self, fetch: Callable[[], bytes | None]) -> bytes | None:
        message = fetch()
        if message is not None:
            self._write(wire.decode_policy_weights(message).version, message)
        return message

    @contextmanager
    def _locked(self, kind: int) -> Iterator[bool]:
        """Try to hold the slot; whether that worked."""
        try:
            fcntl.lockf(self._descriptor, kind | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _header(self) -> tuple[int, int]:
        header = os.pread(self._descriptor, _HEADER.size, 0)
        return _HEADER.unpack(header) if len(header) == _HEADER.size else (0, 0)

    def _read(self, version: int) -> bytes | None:
        held, length = self._header()
        return os.pread(self._descriptor, length, _HEADER.size) if held >= max(1, version) else None

    def _write(self, version: int, message: bytes) -> None:
        os.pwrite(
            self._descriptor, _HEADER.pack(0, 0), 0
        )  # a writer that is killed leaves an empty slot, not a torn one
        os.pwrite(self._descriptor, message, _HEADER.size)
        os.pwrite(self._descriptor, _HEADER.pack(version, len(message)), 0)
