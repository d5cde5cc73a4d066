"""What asks a launcher to end its run: Ctrl-C, SIGTERM, a closed terminal."""

from __future__ import annotations

import errno
import os
import signal
import termios
from types import FrameType


class Interrupts:
    """Ctrl-C once asks for an orderly end, twice ends at once; SIGTERM and a closed terminal are the first."""

    def __init__(self) -> None:
        self.count = 0

    def install(self) -> None:
        """Catch SIGINT, SIGTERM and SIGHUP from now on."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        if self.count >= 2 and number == signal.SIGINT:
            raise KeyboardInterrupt


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
