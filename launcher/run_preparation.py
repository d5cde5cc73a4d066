"""Make a run directory ready for a start: what happens to one that exists already, and which are refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launcher.run_directory import RunDirectory, await_last_roles, refuse_roles_without_launcher
from replay_service.errors import RunDirectoryError

RestartBehavior = Literal["resume", "restart", "overwrite"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A directory that is ready for a run."""

    run: RunDirectory
    resumes: bool
    """Whether the run in it is gone on with."""
    made: bool = False
    """Whether the folder was not there before."""
    aside: Path | None = None
    """Where the run lies now that was in its place."""
    deletes: bool = False
    """Whether that one is to be deleted, once the new run has begun."""
    hold: ExitStack = field(default_factory=ExitStack)
    """Gives up the lock of the run that was found: the run that is resumed, or the one that lies aside now. That one is
    to be kept until the run in its place is held: who waits for the lock must not find it free before."""

    def begun(self) -> None:
        """The new run has begun: the one that it overwrites is not needed any more."""
        if self.deletes and self.aside is not None:
            shutil.rmtree(self.aside, ignore_errors=True)


def prepare(path: Path, behavior: RestartBehavior | None) -> Prepared:
    """Make the directory ready for a run.

    Args:
        path: the run directory.
        behavior: resume goes on with the run in it; restart moves that run aside and begins anew; overwrite does the
            same, and deletes it once the new one has begun; None insists on a directory without a run.

    Raises:
        RunDirectoryError: the directory does not fit the behaviour, is in use, or cannot be written.
    """
    run = RunDirectory(path)
    aside = None
    with ExitStack() as hold:
        try:
            refuse_unfit(run, behavior)
            if run.holds_run:
                hold.enter_context(_held_if_there(run))
                refuse_other_roles(run)
                if behavior == "resume":
                    return Prepared(run, resumes=True, hold=hold.pop_all())
                aside = _free_name(path)
                path.rename(aside)
            made = not path.exists()
            try:
                path.mkdir(parents=True, exist_ok=True)
                run.logs.mkdir(exist_ok=True)
            except BaseException:
                if aside is not None:
                    aside.rename(path)  # in whose place there is an empty folder at most
                raise
        except OSError as error:
            raise RunDirectoryError(f"cannot write the run directory {path}: {error.strerror}") from error
        deletes = behavior == "overwrite"
        return Prepared(run, resumes=False, made=made, aside=aside, deletes=deletes, hold=hold.pop_all())


@contextmanager
def _held_if_there(run: RunDirectory) -> Iterator[None]:
    """Hold a run that was there a moment ago.

    Raises:
        RunDirectoryInUse: another process holds it, or has moved it aside since.
    """
    with ExitStack() as hold:
        try:
            hold.enter_context(run.held())
        except FileNotFoundError as error:
            raise run.taken() from error
        if not run.holds_run:  # what we hold is the other start's empty folder; it waits until we let it go
            raise run.taken()
        yield


def await_free(path: Path, behavior: RestartBehavior | None) -> None:
    """Wait for the last roles of a run that is to be resumed or replaced; `prepare` refuses those that stay.

    Raises:
        RunDirectoryError: they cannot be seen from here.
    """
    run = RunDirectory(path)
    with suppress(OSError):  # `prepare` says what cannot be looked at
        if behavior is not None and run.holds_run and run.holder() is None and run.reader() is None:
            await_last_roles(run)


def refuse_unfit(run: RunDirectory, behavior: RestartBehavior | None) -> None:
    """Refuse a start in a directory that does not fit what is to be done with the run in it; nothing is changed.

    Raises:
        RunDirectoryError: it does not.
        OSError: it cannot be looked at.
    """
    path = run.path
    if not run.holds_run:
        if behavior == "resume":
            raise RunDirectoryError(f"{path} holds no run to resume")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunDirectoryError(f"{path} exists and holds something else than a run: choose another --run-dir")
        return
    if run.is_part:
        raise RunDirectoryError(
            f"{path} is this machine's part of a run that another machine's launcher runs: give the command there, or "
            "choose another --run-dir"
        )
    if behavior is None:
        raise RunDirectoryError(
            f"{path} holds a run already: add --restart-behavior resume (go on), restart (keep it aside and begin "
            "anew) or overwrite (delete it), or choose another --run-dir"
        )
    if behavior == "overwrite":
        refuse_own_folder(path)


def refuse_own_folder(path: Path) -> None:
    """Refuse to delete the folder that this process is in.

    Raises:
        RunDirectoryError: it is.
    """
    if Path.cwd().is_relative_to(path.resolve()):
        raise RunDirectoryError(
            f"{path} would be deleted, and is the folder that you are in: give the command from another one"
        )


def refuse_other_roles(run: RunDirectory) -> None:
    """Refuse a start in a run whose roles are up without a launcher.

    Raises:
        RunDirectoryError: they are, or cannot be seen from here.
    """
    refuse_roles_without_launcher(run, "end them first, where they were started")


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate
