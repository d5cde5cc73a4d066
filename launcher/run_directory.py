"""The run directory: what is in it, who holds it, and which one a command means.

config.toml      the resolved configuration, without secrets       checkpoints/   the learner's
summary.json     what came out; see replay_service/records.py      logs/          one file a process
evaluations.csv  a row an evaluation                               tensorboard/   event files
launcher.lock    held by the launcher, or a reader                 redis/         data and password, owner only
learner-node     where the checkpoints are, if not here
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from replay_service.data_lock import SERVICE_LOCK, is_served, take_patiently
from replay_service.errors import RunDirectoryError

RUNS_DIR = Path("runs")
_LATEST = "latest"
_PURPOSE = "for"
_READING = "reading"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_LAST_ROLES_TIMEOUT_S = 15.0
"""Longest wait for roles whose launcher was killed: they end within seconds."""


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
    def had_launcher(self) -> bool:
        """Whether a launcher ran this directory, here or elsewhere; it is the only one that writes this log."""
        return self.launcher_log.exists()

    @property
    def launcher_log(self) -> Path:
        """Log of the launcher."""
        return self.logs / "launcher.log"

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

    def has_roles(self, *, for_s: float = 0.0) -> bool:
        """Whether a replay service runs here, whoever started it.

        Args:
            for_s: how long to wait for its end, seconds.

        Raises:
            RunDirectoryError: it cannot be seen from here.
        """
        try:
            return is_served(self.connection.parent, SERVICE_LOCK, for_s=for_s)
        except OSError as error:
            whose = "; give the command as the user who started them" if isinstance(error, PermissionError) else ""
            raise RunDirectoryError(
                f"cannot see whether the roles of {self.path} are up: {self.connection.parent}: {error.strerror}{whose}"
            ) from error

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
            RunDirectoryInUse: another process holds it, or has just put another run in its place.
        """
        with self.lock.open("a+", encoding="utf-8") as file:
            try:
                take_patiently(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise RunDirectoryInUse(self._in_use(self._lock_holder() or {})) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                raise RunDirectoryError(
                    f"{self.path}: its file system has no locks ({error.strerror}), without which two launchers could "
                    "take one run: choose another --run-dir, or mount it with locks"
                ) from error
            if not self._is_lock(file.fileno()):  # the run was moved aside while we waited for its lock
                raise self.taken()
            file.truncate(0)
            file.flush()
            self.sign(reads=reads)
            yield

    def taken(self) -> RunDirectoryInUse:
        """The error of a start that comes a moment after another one of the same run."""
        return RunDirectoryInUse(
            f"another start has taken {self.path} just now: see `launcher status {shlex.quote(str(self.path))}`"
        )

    def _is_lock(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.lock.stat())
        except FileNotFoundError:
            return False

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


def await_last_roles(run: RunDirectory) -> None:
    """Wait for the end of roles whose launcher was killed, 15 s at most; for those that never had one nobody waits.

    Raises:
        RunDirectoryError: they cannot be seen from here.
    """
    if run.had_launcher and run.has_roles():
        print(f"a replay service still runs on {run.path}: waiting for its end", file=sys.stderr)
        run.has_roles(for_s=_LAST_ROLES_TIMEOUT_S)


def refuse_roles_without_launcher(run: RunDirectory, remedy: str) -> None:
    """Refuse to ask a run for anything that only a launcher does, where its roles are up and no launcher holds it here.

    Args:
        run: the run.
        remedy: what to do instead.

    Raises:
        RunDirectoryError: they are, and the text ends in the remedy, or they cannot be seen from here.
    """
    if run.has_roles():
        raise RunDirectoryError(f"{run.path} has no launcher here, and its roles are up: {remedy}")


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
