"""`launcher up --detach`: go on without a terminal, and tell the one who started it how it went."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from launcher.run_directory import RunDirectory

_OUTPUT = "launcher.out"
_POLL_S = 0.1
_SHOWN_CHARACTERS = 4_000


def output_path(directory: RunDirectory) -> Path:
    """Where a detached launcher writes what it would have shown."""
    return directory.logs / _OUTPUT


def detach(directory: RunDirectory) -> int | None:
    """Fork: the child goes on in a session of its own and keeps the lock, the parent waits until the run is up.

    To be called before threads are started and Ray is loaded, while the run directory is held.

    Returns:
        None in the child, which goes on; in the parent the exit code: 0 once the run is up, else that of the child.
    """
    directory.ready.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    output = output_path(directory)
    began = output.stat().st_size if output.exists() else 0
    child = os.fork()
    if child == 0:
        os.setsid()
        _write_to(output)
        directory.sign()
        return None
    return _wait_until_up(child, directory, began)


def _write_to(output: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for own, stream in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(own, stream)
    os.close(nothing)
    os.close(file)


def _wait_until_up(child: int, directory: RunDirectory, began: int) -> int:
    print(f"{directory.path} is starting, process {child} ...", flush=True)
    try:
        while not directory.ready.exists():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                print(_since(output_path(directory), began), end="", file=sys.stderr)
                return os.waitstatus_to_exitcode(status)
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        print("it goes on starting", file=sys.stderr)
    print(
        f"it goes on without this terminal; see it with: launcher attach {directory.path}\n"
        f"stop it with: launcher down {directory.path}"
    )
    return 0


def _since(output: Path, began: int) -> str:
    with output.open("rb") as file:
        file.seek(began)
        return file.read().decode(errors="replace")[-_SHOWN_CHARACTERS:]
