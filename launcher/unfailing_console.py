"""A console whose reader may go away: what cannot be shown must not end a run."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from rich.console import Console

_log = logging.getLogger(__name__)


class UnfailingConsole(Console):
    """Leaves out what cannot be shown: behind a pipe that nobody reads, or on a disk that is full."""

    _told = False

    def print(self, *objects: Any, **options: Any) -> None:
        """Show something, if it can be shown."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._tell(f"{error.strerror}; it is left out")

    def on_broken_pipe(self) -> None:
        """Show nothing more; rich itself would end the program."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # so that what is still buffered does not fail at the end
        os.close(nowhere)
        self._tell("nobody reads it any more; nothing is shown from here on")

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            _log.warning("the output cannot be written: %s", what)
