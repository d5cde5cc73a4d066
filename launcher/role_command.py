"""Run commands of another package to their end: cloning needs torch, recording an environment, the launcher neither.

No such process outlives the command that started it: an error, Ctrl-C and SIGTERM end it first, and behind a SIGKILL
the kernel does, for modules that call `die_with_launcher`.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Never

from replay_service.errors import USER_ERROR_EXIT_CODE, AwacError, UserError
from replay_service.process import PARENT_VARIABLE

_POLL_S = 0.1
"""Longest wait without a look for signals: one that comes just before a wait begins does not cut it short."""
_GRACE_S = 10.0
"""Time that a process gets for its own end before it is killed."""


class StepFailed(AwacError):
    """A process of a pipeline ended with an error; its own words are on stderr."""


class StepRefused(UserError):
    """A process of a pipeline refused its input; its own words are on stderr."""


class _GivenUp(Exception):
    """A process was ended, or not begun, because one beside it failed."""


def run_module(
    module: str,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    given_up: threading.Event | None = None,
) -> str:
    """Run `python -m module arguments` and return what it printed.

    Args:
        module: to run.
        arguments: of its command line.
        environment: is added to this process's own.
        given_up: set by another thread once the result is not wanted any more.

    Raises:
        StepRefused: it refused its input.
        StepFailed: it failed in another way.
    """
    if given_up is not None and given_up.is_set():
        raise _GivenUp
    command = [sys.executable, "-m", module, *(str(argument) for argument in arguments)]
    variables = {**os.environ, **(environment or {}), PARENT_VARIABLE: str(os.getpid())}
    with (
        _sigterm_as_exception(),
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process,
    ):
        try:
            printed = _communicate(process, given_up)
        except BaseException:
            _end(process)
            raise
    if process.returncode == USER_ERROR_EXIT_CODE:
        raise StepRefused(f"{module} refused its input (see above)")
    if process.returncode != 0:
        raise StepFailed(f"{module} ended with code {process.returncode}")
    return printed.strip()


def run_modules(module: str, lines: Sequence[Sequence[object]], *, at_once: int, ended: Callable[[int], None]) -> None:
    """Run a module with each of several lines of arguments, some of them beside each other.

    The first that fails stops the rest: no other is begun, and those that run are ended.

    Args:
        module: to run.
        lines: arguments of each.
        at_once: most processes at a time.
        ended: told after each how many have ended well.

    Raises:
        StepRefused, StepFailed: as `run_module`.
    """
    given_up = threading.Event()
    results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(arguments: Sequence[object]) -> None:
        try:
            run_module(module, *arguments, given_up=given_up)
        except BaseException as error:
            given_up.set()  # here, before this thread takes the next line
            results.put(error)
        else:
            results.put(None)

    with _sigterm_as_exception(), ThreadPoolExecutor(at_once) as pool:
        try:
            for line in lines:
                pool.submit(run, line)
            count = 0
            while count < len(lines):
                error = _next(results)
                if error is None:
                    count += 1
                    ended(count)
                elif not isinstance(error, _GivenUp):  # else another one, which is still to come, tells why
                    raise error
        except BaseException:
            given_up.set()
            raise


def _next(results: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    while True:
        try:
            return results.get(timeout=_POLL_S)
        except queue.Empty:
            continue


def _communicate(process: subprocess.Popen[str], given_up: threading.Event | None) -> str:
    while True:
        try:
            return process.communicate(timeout=_POLL_S)[0]
        except subprocess.TimeoutExpired:
            if given_up is not None and given_up.is_set():
                raise _GivenUp from None


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does: by an exception, in whose wake everything is cleared up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread, which is in here too
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, _frame: FrameType | None) -> Never:
    raise SystemExit(128 + number)
