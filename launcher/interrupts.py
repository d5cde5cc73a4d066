"""What asks a launcher to end its run: Ctrl-C, SIGTERM, a closed terminal."""

from __future__ import annotations

import errno
import os
import signal
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Ctrl-C once asks for an orderly end, twice ends at once; SIGTERM and a closed terminal are the first."""

    def __init__(self) -> None:
        self.count = 0

    def install(self) -> None:
        """Catch SIGINT, SIGTERM and SIGHUP from now on; under `nohup` a closed terminal stays unnoticed."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        if self.count >= 2 and number == signal.SIGINT:
            raise KeyboardInterrupt


@contextmanager
def keeping_ctrl_c_back() -> Iterator[None]:
    """A Ctrl-C that comes inside of this takes effect at its end, where what has been done until then can be undone.

    For the main thread. A blocked signal would not do: another thread, of a library, would get it and pass it on.
    """
    came = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def keeping_hangups_from_children() -> Iterator[None]:
    """Start processes inside of this that a closed terminal must not end.

    A shell tells its whole job of a closed terminal, whose processes must outlive the orderly end that this one then
    begins. They inherit the block, which this process gives up again.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_closed_terminal() -> None:
    """Send to nowhere what would go to a terminal that is gone: a failed write must not disturb the orderly end."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # a file or a pipe says ENOTTY, and is written to as before
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
