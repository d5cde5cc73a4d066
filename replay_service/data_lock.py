"""One server at a time on the data of a run, and one replay service: locks that end with the process that holds them.

Redis takes no lock of its own. Two servers on one append-only file ruin it: each rewrites the other's manifest. Two
replay services would both write the records of the run.

The lock is the kind of `fcntl` that belongs to a process: it stays over an exec, so it can be taken for a program that
knows nothing of it; the children that a server forks to rewrite its file do not have it, so they keep nobody waiting
when the server is killed; and it works without /proc, between containers, and on NFS.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVER_LOCK = "server.lock"
SERVICE_LOCK = "service.lock"
_HELD = (errno.EACCES, errno.EAGAIN)
_PAUSE_S = 0.05
_LOOKS_S = 2.0
"""Longer than others who only look at the lock can be in the way, on a machine that is busy."""
_LOOK_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class DataLock:
    """An open lock file. Whoever closes any descriptor of the file gives up the lock, so only the holder keeps one."""

    descriptor: int
    """To be inherited by a server that is to hold the lock."""

    def take(self) -> None:
        """Take the lock for the calling process, which a server does between fork and exec.

        Raises:
            BlockingIOError: another process has it.
        """
        take_patiently(self._take_now)

    def _take_now(self) -> None:
        if not self._locked(fcntl.LOCK_EX):
            raise BlockingIOError

    def is_held(self) -> bool:
        """Whether another process has it."""
        if not self._locked(fcntl.LOCK_SH):
            return True
        with contextlib.suppress(OSError):
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)
        return False

    def _locked(self, kind: int) -> bool:
        try:
            fcntl.lockf(self.descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            # On a file system without locks there is only the launcher's, of another kind, that guards a run.
            return error.errno not in _HELD
        return True

    def is_free_within(self, timeout_s: float, *, pause: Callable[[float], object] = time.sleep) -> bool:
        """Wait until nobody has it; False when somebody still has it after so long, or when the wait is cut short.

        Args:
            timeout_s: longest wait, seconds.
            pause: sleeps for so many seconds; a true answer ends the wait.
        """
        deadline = time.monotonic() + timeout_s
        while self.is_held():
            if time.monotonic() > deadline or pause(_PAUSE_S):
                return False
        return True


def take_patiently(take: Callable[[], None]) -> None:
    """Take a lock, for longer than others who only look at it can be in the way.

    Args:
        take: takes it, or raises BlockingIOError at once.

    Raises:
        BlockingIOError: another process has it.
    """
    deadline = time.monotonic() + _LOOKS_S
    while True:
        try:
            return take()
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_POLL_S)


@contextmanager
def data_lock(folder: Path, name: str = SERVER_LOCK) -> Iterator[DataLock]:
    """The lock on the data in a folder, open but not taken; the file is made when there is none.

    Args:
        folder: of the data.
        name: who is to be the only one, `SERVER_LOCK` or `SERVICE_LOCK`.

    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield DataLock(descriptor)
    finally:
        os.close(descriptor)


def is_served(folder: Path, name: str = SERVER_LOCK, *, for_s: float = 0.0) -> bool:
    """Whether another process holds a lock on the data in a folder, and goes on holding it.

    Args:
        folder: of the data.
        name: of the lock.
        for_s: how long to wait for its end, seconds.

    Raises:
        OSError: the lock cannot be opened, so there is no telling.
    """
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)  # of a disk that is read-only too
    except FileNotFoundError:
        return False
    try:
        return not DataLock(descriptor).is_free_within(for_s)
    finally:
        os.close(descriptor)
