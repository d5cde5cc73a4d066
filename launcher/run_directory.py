"""The run directory: what is in it, who holds it, and what happens to one that exists already.

config.toml      the resolved configuration, without secrets       checkpoints/   the learner's
summary.json     what came out; see replay_service/records.py      logs/          one file a process
evaluations.csv  a row an evaluation                               tensorboard/   event files
launcher.lock    held by the launcher, or a reader                 redis/         data and password, owner only
learner-node     where the checkpoints are, if not here
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from replay_service.errors import RunDirectoryError

RestartBehavior = Literal["resume", "restart", "overwrite"]

RUNS_DIR = Path("runs")
_LATEST = "latest"
_PURPOSE = "for"
_READING = "reading"
_LOOKS_S = 2.0
"""Longer than others who only look at the lock can be in the way, on a machine that is busy."""
_LOOK_POLL_S = 0.01
_SUMMARY_AGE_S = 15.0
"""Oldest summary of a run that may be up: the replay service writes it anew every second."""
_SUMMARY_PATIENCE_S = 5.0
"""How long the next one is waited for, on a machine that is busy."""
_SUMMARY_POLL_S = 0.05


class RunDirectoryInUse(RunDirectoryError):
    """Another process holds this directory, which is not ours to touch."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the learner's checkpoints."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Folder of the log files."""
        return self.path / "logs"

    @property
    def videos(self) -> Path:
        """Folder of the films that `launcher video` makes."""
        return self.path / "videos"

    @property
    def summary(self) -> Path:
        """What came out."""
        return self.path / "summary.json"

    @property
    def connection(self) -> Path:
        """The run's Redis endpoint, mode 0600."""
        return self.path / "redis" / "connection.json"

    @property
    def opening(self) -> Path:
        """Made by the replay service just before anything of the run enters Redis."""
        return self.path / "redis" / "opening"

    @property
    def ready(self) -> Path:
        """Written by the replay service once the run can be joined."""
        return self.path / "redis" / "ready"

    @property
    def lock(self) -> Path:
        """Locked for as long as a launcher runs this directory, or a command reads what a stopped run has left."""
        return self.path / "launcher.lock"

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists()

    @property
    def is_part(self) -> bool:
        """Whether this is what another node than the launcher's keeps of a run."""
        return not any(path.exists() for path in (self.lock, self.summary, self.connection.parent))

    def holder(self) -> dict[str, object] | None:
        """The launcher that runs this directory now (`pid`, `host`), or None."""
        found = self._lock_holder()
        return None if found is None or _reads(found) else found

    def reader(self) -> dict[str, object] | None:
        """The command that reads the data of this run, which is not up (`pid`, `host`), or None."""
        found = self._lock_holder()
        return found if found is not None and _reads(found) else None

    def _lock_holder(self) -> dict[str, object] | None:
        try:
            with self.lock.open("r", encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found: dict[str, object] = json.loads(file.read() or "{}")
                    return found
        except (OSError, ValueError):
            return None
        return None

    def has_roles(self) -> bool:
        """Whether a replay service, whoever started it, keeps the records of a run that no launcher holds here.

        A replay service that was killed leaves its last summary as one at work does, so the next one is waited for.
        """
        written = self._summary_written()
        if not self.ready.exists() or time.time() - written / 1e9 > _SUMMARY_AGE_S:
            return False
        deadline = time.monotonic() + _SUMMARY_PATIENCE_S
        while self._summary_written() == written:
            if time.monotonic() > deadline:
                return False
            time.sleep(_SUMMARY_POLL_S)
        return True

    def _summary_written(self) -> int:
        try:
            return self.summary.stat().st_mtime_ns
        except OSError:
            return 0

    def write_config(self, text: str) -> None:
        """Put the resolved configuration, which holds no secrets, in the place of what is there."""
        partial = self.config.with_suffix(".partial")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.config)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)  # half a file must not keep a directory from being taken back

    @contextlib.contextmanager
    def held(self, *, reads: bool = False) -> Iterator[None]:
        """Hold the directory for this process; the lock ends with the process, however it ends.

        Args:
            reads: whether this process only reads the data of a run that is not up.

        Raises:
            RunDirectoryInUse: another process holds it.
        """
        with self.lock.open("a+", encoding="utf-8") as file:
            try:
                _take(file)
            except BlockingIOError as error:
                raise RunDirectoryInUse(self._in_use(self._lock_holder() or {})) from error
            file.truncate(0)
            file.flush()
            self.sign(reads=reads)
            yield

    def _in_use(self, holder: dict[str, object]) -> str:
        process = f"with process id {holder.get('pid', '?')} on {holder.get('host', '?')}"
        if _reads(holder):
            return f"{self.path} is not running, but a command {process} reads its data: try again when it has ended"
        return (
            f"{self.path} is in use by the launcher {process}: stop it with `launcher down "
            f"{shlex.quote(str(self.path))}`, or choose another --run-dir"
        )

    def sign(self, *, reads: bool = False) -> None:
        """Write this process's name, and what for, into the lock, which it or its parent holds."""
        name: dict[str, object] = {"pid": os.getpid(), "host": socket.gethostname()}
        with self.lock.open("r+", encoding="utf-8") as file:
            file.write(json.dumps({**name, _PURPOSE: _READING} if reads else name))
            file.truncate()


def _reads(holder: dict[str, object]) -> bool:
    """Whether who holds a lock only reads; one that names no purpose is a launcher."""
    return holder.get(_PURPOSE) == _READING


def _take(file: TextIO) -> None:
    """Lock a file for this process alone.

    Raises:
        BlockingIOError: another one has it, for longer than a look at the lock takes.
    """
    deadline = time.monotonic() + _LOOKS_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_POLL_S)


def refuse_roles_without_launcher(run: RunDirectory, remedy: str) -> None:
    """Refuse to ask a run for anything that only a launcher does, where its roles are up and no launcher holds it here.

    Raises:
        RunDirectoryError: they are; the text ends in the remedy.
    """
    if run.has_roles():
        raise RunDirectoryError(f"{run.path} has no launcher here, and its roles are up: {remedy}")


def refuse_own_folder(path: Path) -> None:
    """Refuse to delete the folder that this process is in.

    Raises:
        RunDirectoryError: it is.
    """
    if Path.cwd().is_relative_to(path.resolve()):
        raise RunDirectoryError(
            f"{path} would be deleted, and is the folder that you are in: give the command from another one"
        )


def reading_note(run: RunDirectory) -> str:
    """What to say after "is not running" of a run whose data a command reads now; '' when none does."""
    reader = run.reader()
    return "" if reader is None else f" (the command with process id {reader.get('pid', '?')} reads its data)"


def default_path(env: str) -> Path:
    """A new directory below `runs/`, named by environment and time."""
    return RUNS_DIR / f"{env.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"


def latest_path() -> Path:
    """The run that was started last in this folder.

    Raises:
        RunDirectoryError: there is none.
    """
    link = RUNS_DIR / _LATEST
    if not link.exists():
        raise RunDirectoryError(f"no run was started in {RUNS_DIR.resolve()} yet: name a run directory")
    return link.resolve()


def chosen_path(path: Path) -> Path:
    """The run directory that a path means, with a name: `runs/latest` names a run, it is none itself, nor is `.`.

    Raises:
        RunDirectoryError: `runs/latest` is no link.
    """
    if path.is_symlink() or path.name in ("", ".."):
        return path.resolve()
    if path.name == _LATEST and path.parent.resolve() == RUNS_DIR.resolve():
        found = "is a folder, where the link to the latest run belongs: rename it" if path.exists() else "is not there"
        raise RunDirectoryError(f"--run-dir: {path} {found}; that name is kept for the link to the latest run")
    return path


def linked_run() -> Path | None:
    """The run that `runs/latest` names, if it names one."""
    link = RUNS_DIR / _LATEST
    return link.resolve() if link.is_symlink() and link.exists() else None


def remember_latest(path: Path) -> None:
    """Point `runs/latest` to a run, when the run lies in `runs/`.

    Where it cannot be done, a warning says so: it is a convenience, and no reason to start nothing.
    """
    link = RUNS_DIR / _LATEST
    if path.parent.resolve() != RUNS_DIR.resolve():
        return
    partial = RUNS_DIR / f".{_LATEST}.{os.getpid()}"
    try:
        partial.unlink(missing_ok=True)
        partial.symlink_to(path.name)
        partial.replace(link)
    except OSError as error:  # a folder has that name, or the file system has no links
        print(f"warning: {link} cannot be made to name {path}: {error.strerror}", file=sys.stderr)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def forget_latest(latest: Path | None) -> None:
    """Let `runs/latest` name a run again that it named before; a link that leads nowhere goes away."""
    link = RUNS_DIR / _LATEST
    if link.is_symlink() and not link.exists():
        link.unlink()
    if latest is not None and latest.exists():
        remember_latest(latest)


def find_run(path: Path | None, *, also_part: bool = False) -> RunDirectory:
    """The run that a command means: the one named, or the latest.

    Args:
        path: of the run directory, if one was named.
        also_part: whether the part of it that lies on a node without the launcher will do.

    Raises:
        RunDirectoryError: there is no run, or only a part of it.
    """
    chosen = path if path is not None else latest_path()
    run = RunDirectory(chosen)
    if not run.holds_run:
        raise RunDirectoryError(f"{chosen} holds no run: expected a folder with a config.toml that `launcher up` wrote")
    if not also_part and run.is_part:
        raise RunDirectoryError(
            f"{chosen} is this machine's part of a run that another machine's launcher runs: give the command there"
        )
    return run


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
        if run.holds_run:
            if run.is_part:
                raise RunDirectoryError(
                    f"{path} is this machine's part of a run that another machine's launcher runs: give the command "
                    "there, or choose another --run-dir"
                )
            if behavior is None:
                raise RunDirectoryError(
                    f"{path} holds a run already: add --restart-behavior resume (go on), restart (keep it aside and "
                    "begin anew) or overwrite (delete it), or choose another --run-dir"
                )
            with run.held():
                pass  # refuses here when another process holds it
            if behavior == "resume":
                return Prepared(run, resumes=True)
            if behavior == "overwrite":
                refuse_own_folder(path)
            refuse_roles_without_launcher(run, "end them first, where they were started")
            aside = _free_name(path)
            path.rename(aside)
        elif behavior == "resume":
            raise RunDirectoryError(f"{path} holds no run to resume")
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunDirectoryError(f"{path} exists and holds something else than a run: choose another --run-dir")
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


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate
