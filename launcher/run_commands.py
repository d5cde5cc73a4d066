"""The commands about one run: `launcher status | watch | attach | logs | scale | down`.

Heavy imports stay inside the commands.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App
from rich.console import Console

from replay_service.config import require_at_least
from replay_service.errors import ConfigError, RunDirectoryError, UserError

if TYPE_CHECKING:
    from launcher.run_directory import RunDirectory

_SCALE_TIMEOUT_S = 300.0
_DOWN_TIMEOUT_S = 120.0
"""Beside what a run gives each of its roles for an orderly end."""
_ROLES = 4
_POLL_S = 0.2


def add_run_commands(app: App) -> None:
    """Register the commands."""
    for command in (status, watch, attach, logs, scale, down):
        app.command(command)


def status(run: Path | None = None, /) -> int:
    """Show how a run is doing.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    """
    from launcher.dashboard import evaluation_table
    from launcher.display import plain_line
    from launcher.rates import Rates
    from launcher.run_connection import snapshot_reader
    from launcher.run_directory import find_run

    directory = find_run(run)
    holder = directory.holder()
    console = Console()
    if holder is None:
        _show_records(directory, console)
        return 0
    reader = snapshot_reader(directory)
    if reader is None:
        console.print(
            f"{directory.path}: launcher process {holder.get('pid')} holds it; it is starting, or its Redis does not "
            "answer",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return 0
    rates = Rates()
    rates.update(reader.read())
    time.sleep(1.0)
    snapshot = reader.read()
    rates.update(snapshot)
    running = f"{directory.path}: running, launcher process {holder.get('pid')}"
    for line in (running, plain_line(snapshot, rates, "")):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if snapshot.evaluations:
        console.print(evaluation_table(snapshot.evaluations[-10:]))
    return 0


def _show_records(directory: RunDirectory, console: Console) -> None:
    """Show what the replay service has written of a run that no launcher holds here.

    Raises:
        RunDirectoryError: it is damaged.
    """
    from launcher.run_directory import reading_note
    from launcher.run_summary import read_summary

    note = reading_note(directory)
    summary, damage = read_summary(directory)
    if damage:
        raise RunDirectoryError(f"{directory.path}: not running, and its {damage}; a resume writes it anew")
    if not summary:
        console.print(
            f"{directory.path}: not running{note}, and it has no summary yet",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
        return
    if note:
        console.print(f"{directory.path}: not running{note}", highlight=False, markup=False, soft_wrap=True)
    if summary.get("status") == "running":
        summary["status"] = _status_without_launcher(directory)
    for key, value in summary.items():
        if key != "evaluations":
            console.print(f"{key:>24}  {value}", highlight=False, markup=False, soft_wrap=True)


def _status_without_launcher(directory: RunDirectory) -> str:
    """What a run is that no launcher holds here, and whose summary was not told of an end."""
    try:
        if directory.has_roles():
            return "running (no launcher here; its roles are up)"
    except RunDirectoryError:  # the records can be read all the same
        return "running or interrupted (no launcher here, and its roles cannot be seen by you)"
    if not directory.had_launcher:
        return "interrupted (no launcher here, and its replay service is gone)"
    return "interrupted (its launcher is gone; resume it)"


def watch(run: Path | None = None, /, *, once: bool = False) -> int:
    """Follow a run on the live screen of `launcher up`; ends with the run, or at Ctrl-C, which the run survives.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    once
        Show the screen once and return.
    """
    from launcher.run_directory import find_run
    from launcher.watch import watch_run

    return watch_run(find_run(run), Console(), once=once)


def attach(run: Path | None = None, /) -> int:
    """Show the live screen of a run that goes on without a terminal; Ctrl-C leaves the run as it is.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    """
    from launcher.run_directory import find_run
    from launcher.watch import watch_run

    directory, console = find_run(run), Console()
    if directory.holder() is not None:
        console.print(
            f"Ctrl-C leaves this screen, not the run; stop the run with: launcher down {_quoted(directory.path)}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    return watch_run(directory, console, once=False)


def logs(run: Path | None = None, /, *, role: str = "", lines: int = 20) -> int:
    """Print the end of a run's log files.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    role
        Only files whose name begins with this: learner, replay, actor-3, ...
    lines
        Lines of each file.
    """
    from launcher.run_directory import find_run

    require_at_least("--lines", lines, 1)
    directory = find_run(run, also_part=True)
    found = sorted(path for path in directory.logs.glob("*.log") if path.name.startswith(role))
    if not found:
        names = ", ".join(path.stem for path in sorted(directory.logs.glob("*.log")))
        if not names:
            raise RunDirectoryError(
                f"{directory.path} has no logs yet: its roles write them to {directory.logs} once they have started; "
                "roles in containers write none there, `docker compose logs` has theirs"
            )
        raise ConfigError(f"--role: expected one of {names}, got {role!r}")
    for path in found:
        print(f"==> {path} <==")
        tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        print("\n".join(tail))
    return 0


def scale(run: Path | None = None, /, *, actors: int) -> int:
    """Give a run that is up more or fewer actors.

    Those that leave send what they have first. A resume goes on with the new number.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    actors
        How many the run shall have.
    """
    from launcher.run_directory import await_last_roles, find_run, reading_note, refuse_roles_without_launcher
    from replay_service.config_file import load_run_config
    from replay_service.connection import RedisEndpoint, check, connect
    from replay_service.keys import Keys
    from replay_service.run_state import Phase, RunStateStore

    if actors < 1:
        raise ConfigError(f"--actors: expected at least 1, got {actors}; `launcher down` ends a run")
    directory = find_run(run)
    if directory.holder() is None:
        await_last_roles(directory)
        refuse_roles_without_launcher(
            directory, f"change their number where they were started, as in `docker compose up --scale actor={actors}`"
        )
        raise RunDirectoryError(
            f"{directory.path} is not running{reading_note(directory)}: resume it with that number, launcher up "
            f"--run-dir {_quoted(directory.path)} --restart-behavior resume --actors {actors}"
        )
    config = load_run_config(directory.config)
    if config.lockstep:
        raise ConfigError("--actors: a run in lock-step takes turns among the actors it began with")
    if not directory.ready.exists():
        raise RunDirectoryError(f"{directory.path} is still starting: try again in a moment")
    endpoint = RedisEndpoint.load(directory.connection)
    check(endpoint)
    store = RunStateStore(connect(endpoint, reply_timeout_s=5.0), Keys(config.run_id))
    before = store.read()
    if before.phase is Phase.FINISHED:
        raise RunDirectoryError(f"{directory.path} is finished: its actors have nothing left to do")
    store.request_actors(actors)
    print(f"from {before.actors} to {actors} actors ...", flush=True)
    deadline = time.monotonic() + _SCALE_TIMEOUT_S
    while (now := store.read()).actors != actors:
        if directory.holder() is None:
            raise RunDirectoryError(f"{directory.path} ended meanwhile")
        if now.actors_wanted != actors:
            raise RunDirectoryError(
                f"the launcher stays at {now.actors} actors, or was asked for another number meanwhile; its log: "
                f"{directory.launcher_log}"
            )
        if time.monotonic() > deadline:
            raise RunDirectoryError(
                f"the launcher has not followed in {_SCALE_TIMEOUT_S:.0f} s; its log: {directory.launcher_log}"
            )
        time.sleep(_POLL_S)
    print(f"{directory.path} has places for {actors} actors; they start now")
    return 0


def down(run: Path | None = None, /) -> int:
    """Stop a run in order; it can be resumed.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    """
    from launcher.experiment import LauncherConfig
    from launcher.run_directory import await_last_roles, find_run, reading_note, refuse_roles_without_launcher
    from replay_service.config_file import load_role_config, load_run_config
    from replay_service.connection import RedisEndpoint, connect
    from replay_service.keys import Keys
    from replay_service.run_state import RunStateStore

    directory = find_run(run)
    holder = directory.holder()
    if holder is None:
        await_last_roles(directory)
        refuse_roles_without_launcher(
            directory, "stop them where they were started, those in containers by `docker compose stop`"
        )
        print(f"{directory.path} is not running{reading_note(directory)}")
        return 0
    try:
        grace_s = load_role_config(directory.config, "launcher", LauncherConfig).stop_grace_s
    except UserError:  # a launcher of another version, or one that has not written it yet
        grace_s = LauncherConfig().stop_grace_s
    # One role after the other is stopped, and each may use all of its time, as while Redis does not answer.
    timeout_s = _DOWN_TIMEOUT_S + _ROLES * grace_s
    try:
        if not directory.ready.exists():
            raise RunDirectoryError("it is still starting")  # and would forget what it is asked through Redis
        client = connect(RedisEndpoint.load(directory.connection), reply_timeout_s=5.0)
        store = RunStateStore(client, Keys(load_run_config(directory.config).run_id))
        store.read()
        store.request_stop("launcher down")
    except Exception as error:
        # Whatever keeps us from asking through Redis, the signal does the same on this machine.
        if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
            raise RunDirectoryError(
                f"{directory.path} is run on {holder.get('host', '?')}, and its Redis cannot be asked from here "
                f"({error}): run `launcher down` there"
            ) from error
        print(f"asking by signal, because Redis cannot be asked ({error})", file=sys.stderr)
        _terminate(directory.path, int(str(holder["pid"])))
    print(f"stopping {directory.path} ...")
    deadline = time.monotonic() + timeout_s
    while directory.holder() is not None:
        if time.monotonic() > deadline:
            raise RunDirectoryError(
                f"{directory.path} is still held by process {holder.get('pid')} after {timeout_s:.0f} s; "
                f"see {directory.launcher_log}"
            )
        time.sleep(_POLL_S)
    print("stopped")
    return 0


def _terminate(run: Path, pid: int) -> None:
    """Ask a launcher on this machine to end; one that has just ended is what was wanted.

    Raises:
        RunDirectoryError: it belongs to another user.
    """
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise RunDirectoryError(
            f"{run} is run by process {pid}, which belongs to another user: run `launcher down` as that one"
        ) from error


def _quoted(path: Path) -> str:
    """A path as a shell takes it, in a command to copy."""
    return shlex.quote(str(path))
