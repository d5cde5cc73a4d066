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
_POLL_S = 0.005


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
        with self._locked(fcntl.LOCK_SH) as held:
            found = self._read(version) if held else None
        if found is not None:
            return found
        with self._locked(fcntl.LOCK_EX) as held:
            found = self._read(version) if held else None
            if found is not None:
                return found
            message = fetch()
            if message is not None:
                fetched = wire.decode_policy_weights(message).version
                if held:
                    self._write(fetched, message)
            return message

    @contextmanager
    def _locked(self, kind: int) -> Iterator[bool]:
        """Hold the slot; False when another actor keeps it too long, because Redis does not answer it, say."""
        deadline = time.monotonic() + _LONGEST_WAIT_S
        held = False
        while not held:
            try:
                fcntl.lockf(self._descriptor, kind | fcntl.LOCK_NB)
                held = True
            except OSError:
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_S)
        try:
            yield held
        finally:
            if held:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _read(self, version: int) -> bytes | None:
        header = os.pread(self._descriptor, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            return None
        held, length = _HEADER.unpack(header)
        return os.pread(self._descriptor, length, _HEADER.size) if held >= max(1, version) else None

    def _write(self, version: int, message: bytes) -> None:
        os.pwrite(
            self._descriptor, _HEADER.pack(0, 0), 0
        )  # a writer that is killed leaves an empty slot, not a torn one
        os.pwrite(self._descriptor, message, _HEADER.size)
        os.pwrite(self._descriptor, _HEADER.pack(version, len(message)), 0)
