"""Telling the user what the replay service does until a run is open: data may take minutes to load."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_NOTICE_S = 10.0
_TAIL_BYTES = 4096


class OpeningNotice:
    """Follows the replay service's log, and repeats every ten seconds what was written last.

    Args:
        log_path: of the replay service; what earlier sessions wrote is left out.
        say: takes a line for the user.
        clock: seconds.
    """

    def __init__(self, log_path: Path, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._log_path = log_path
        self._say = say
        self._clock = clock
        self._first_byte = self._size = _size(log_path)
        self._began = self._grew_at = self._told_at = clock()

    def look(self) -> float:
        """Look at the log now; returns for how many seconds nothing has been written to it."""
        now, size = self._clock(), _size(self._log_path)
        if size != self._size:
            self._size, self._grew_at = size, now
        if now - self._told_at >= _NOTICE_S:
            self._told_at = now
            self._say(f"waiting for the replay service since {now - self._began:.0f} s{self._last_words()}")
        return now - self._grew_at

    def _last_words(self) -> str:
        if self._size <= self._first_byte:
            return ""
        with self._log_path.open("rb") as file:
            file.seek(max(self._first_byte, self._size - _TAIL_BYTES))
            line = file.read().decode(errors="replace").rstrip().rpartition("\n")[2]
        return f": {line.partition(' INFO ')[2] or line}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
