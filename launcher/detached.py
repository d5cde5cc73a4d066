"""`launcher up --detach`: go on without a terminal, and tell the one who started it how it went."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import sys
from pathlib import Path

from launcher.run_directory import RunDirectory
from replay_service.errors import FAILURE_EXIT_CODE, UserError

_OUTPUT = "launcher.out"
_POLL_S = 0.1
_SHOWN_BYTES = 4_000


class Waiting:
    """The process in the terminal, which waits until the run is up.

    Args:
        pipe: to be written to.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._told = False

    def tell(self) -> None:
        """Tell it that the run is up; it may have left."""
        if not self._told:
            self._told = True
            with contextlib.suppress(BrokenPipeError):
                os.write(self._pipe, b"\0")
            os.close(self._pipe)


def detach(directory: RunDirectory, aside: Path | None) -> Waiting | int:
    """Fork: the child goes on in a session of its own and keeps the lock, the parent waits until the run is up.

    To be called before threads are started and Ray is loaded, while the run directory is held.

    Args:
        directory: of the run.
        aside: where the run lies now that was in its place.

    Returns:
        In the child, which goes on, whom to tell that the run is up. In the parent the exit code: 0 once the run is up,
        else that of the child, or 1 when a signal ended it.

    Raises:
        UserError: the machine starts no further process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    directory.logs.mkdir(exist_ok=True)
    # Opened once, by both: a child that takes its start back deletes the file, and what it has said is still read.
    output = os.open(directory.logs / _OUTPUT, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    began = os.fstat(output).st_size
    hears, tells = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        for descriptor in (output, hears, tells):
            os.close(descriptor)
        raise UserError(
            f"--detach needs another process, and this machine starts none ({error.strerror}): end other processes, "
            "or ask for more (ulimit -u)"
        ) from error
    if child == 0:
        os.close(hears)
        os.setsid()
        _write_to(output)
        directory.sign()
        return Waiting(tells)
    try:
        os.close(tells)
        return _wait_until_up(child, (hears, output), began, directory.path, aside)
    except BaseException:  # whatever ends this wait, the run is the child's from here on
        return FAILURE_EXIT_CODE


def _write_to(output: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for own, stream in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(own, stream)
    os.close(nothing)
    os.close(output)


def _wait_until_up(child: int, opened: tuple[int, int], began: int, path: Path, aside: Path | None) -> int:
    hears, output = opened
    print(f"{path} is starting, process {child} ...", flush=True)
    try:
        while not (select.select([hears], [], [], _POLL_S)[0] and os.read(hears, 1)):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                print(_since(output, began), end="", file=sys.stderr)
                return _exit_code(status, path, aside)
    except KeyboardInterrupt:
        print("it goes on starting", file=sys.stderr)
    quoted = shlex.quote(str(path))
    print(
        f"it goes on without this terminal; see it with: launcher attach {quoted}\nstop it with: launcher down {quoted}"
    )
    return 0


def _exit_code(status: int, path: Path, aside: Path | None) -> int:
    """That of a child that ended before the run was up; of one that a signal ended, which could say nothing, say so."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    run = RunDirectory(path)
    print(
        f"error: {path} was ended by signal {-code} ({_name(-code)}) before it was up; its logs are in {run.logs}",
        file=sys.stderr,
    )
    if run.holds_run:
        print(f"go on with: launcher up --run-dir {shlex.quote(str(path))} --restart-behavior resume", file=sys.stderr)
    if aside is not None and aside.exists():
        print(f"the run that was in {path} before is kept, whole, as {aside}", file=sys.stderr)
    return FAILURE_EXIT_CODE


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the numbers between SIGRTMIN and SIGRTMAX, which have no names
        return "unnamed"


def _since(output: int, began: int) -> str:
    end = os.fstat(output).st_size
    first = max(began, end - _SHOWN_BYTES)
    return os.pread(output, end - first, first).decode(errors="replace")
