"""Telling the user which programs of a run wait for room on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable

from launcher.capacity import describe
from launcher.program import RoleProgram

_ROOM_NOTICE_S = 10.0


class RoomNotice:
    """Says every ten seconds which programs wait for room on a node, and once that none does any more."""

    def __init__(
        self,
        waiting: Callable[[], list[RoleProgram]],
        free: Callable[[], str],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting = waiting
        self._free = free
        self._say = say
        self._clock = clock
        self._since: float | None = None
        self._last = 0.0
        self._said = False

    def look(self) -> None:
        """Look at who waits now."""
        now, waiting = self._clock(), self._waiting()
        if not waiting:
            if self._said:
                self._say("every program has found room")
            self._since, self._said = None, False
            return
        if self._since is None:
            self._since = self._last = now
        if now - self._last >= _ROOM_NOTICE_S:
            self._last, self._said = now, True
            since = f"waiting for room, or for a Ray worker to start, since {now - self._since:.0f} s"
            self._say(f"{since}: {describe(waiting)}; {self._free()}")
