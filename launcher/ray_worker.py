"""Which Ray worker is above a pool of actors: known by its title and by the pool, never by its place alone.

Above a pool that was started by hand is a shell, tmux or systemd, which no drill may kill.
"""

from __future__ import annotations

from pathlib import Path

from replay_service.process import PARENT_VARIABLE
from replay_service.process_identity import ProcessIdentity

_TITLE, _PROGRAM = "ray::", "default_worker.py"
"""How the command line of a Ray worker begins, and what is in it where Ray cannot give it that title."""


def worker_above(pool: ProcessIdentity) -> ProcessIdentity | None:
    """The Ray worker whose role host started a pool, or None where the process above the pool is none.

    Args:
        pool: the process above an actor that registered with the run.
    """
    parent = pool.parent()
    if parent is None or parent.pid <= 1:
        return None
    # Whoever starts a role by hand has no reason to set this; a role host does, in the environment of what it starts.
    is_host = f"{PARENT_VARIABLE}={parent.pid}".encode() in _read(pool, "environ").split(b"\0")
    command = command_of(parent)
    return parent if is_host and (command.startswith(_TITLE) or _PROGRAM in command) else None


def command_of(process: ProcessIdentity) -> str:
    """The command line of a process of this machine; '' when it has ended or may not be looked at."""
    return _read(process, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def _read(process: ProcessIdentity, name: str) -> bytes:
    try:
        found = Path(f"/proc/{process.pid}/{name}").read_bytes()
    except OSError:
        return b""
    return found if process.is_alive else b""  # looked at after it was read, so that it is this process's
