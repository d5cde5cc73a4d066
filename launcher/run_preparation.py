"""Make a run directory ready for a start: what happens to one that exists already, and which are refused."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.run_directory import RunDirectory, refuse_roles_without_launcher
from replay_service.errors import RunDirectoryError

RestartBehavior = Literal["resume", "restart", "overwrite"]

_LAST_ROLES_TIMEOUT_S = 15.0
"""Longest wait for roles whose launcher was killed: they end within seconds."""


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
    try:
        refuse_unfit(run, behavior)
        if run.holds_run:
            with run.held():
                pass  # refuses here when another process holds it
            refuse_other_roles(run)
            if behavior == "resume":
                return Prepared(run, resumes=True)
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
    return Prepared(run, resumes=False, made=made, aside=aside, deletes=behavior == "overwrite")


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
    """Refuse a start in a run whose roles are up without a launcher; those of one that was killed are waited for.

    Raises:
        RunDirectoryError: they stay.
    """
    if run.has_roles():
        print(f"a replay service still runs on {run.path}: waiting for its end", file=sys.stderr)
    refuse_roles_without_launcher(run, "end them first, where they were started", for_s=_LAST_ROLES_TIMEOUT_S)


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate
