"""Which process plays a role: host, process id and start time, so that a number used again is not taken for it."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

_PARENT_FIELD, _START_FIELD = 1, 19
"""Places in /proc/<pid>/stat, counted from the process's state on."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, for good: no other ever equals it."""

    host: str
    pid: int
    started_ticks: int
    """Clock ticks from the machine's boot to the start of the process; 0 where there is no /proc."""

    @staticmethod
    def of(pid: int) -> ProcessIdentity:
        """The process that has an id on this machine now."""
        stat = _stat(pid)
        return ProcessIdentity(socket.gethostname(), pid, int(stat[_START_FIELD]) if stat else 0)

    @staticmethod
    def own() -> ProcessIdentity:
        """This process."""
        return ProcessIdentity.of(os.getpid())

    @staticmethod
    def from_json(text: bytes) -> ProcessIdentity:
        """Read what `to_json` wrote."""
        return ProcessIdentity(**json.loads(text))

    def to_json(self) -> str:
        """For the run's hash of processes."""
        return json.dumps(asdict(self))

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs on this machine; one that has ended and is not yet reaped does not."""
        stat = _stat(self.pid)
        return bool(stat) and int(stat[_START_FIELD]) == self.started_ticks and stat[0] not in ("Z", "X")

    def parent(self) -> ProcessIdentity | None:
        """The process above it, or None when it has ended."""
        stat = _stat(self.pid)
        if not stat or int(stat[_START_FIELD]) != self.started_ticks:
            return None
        return ProcessIdentity.of(int(stat[_PARENT_FIELD]))

    def kill(self) -> bool:
        """Send SIGKILL to this process and to no other, even when its id has been given away meanwhile.

        Returns:
            Whether it was alive.
        """
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive:  # looked at after the handle was taken, so both mean the same process
                return False
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
