"""The commands that change or show a run which is up: `launcher scale`, `launcher attach`."""

from __future__ import annotations

import time
from pathlib import Path

from cyclopts import App
from rich.console import Console

from replay_service.errors import ConfigError, RunDirectoryError

_SCALE_TIMEOUT_S = 300.0
_POLL_S = 0.2


def add_run_commands(app: App) -> None:
    """Register the commands."""
    app.command(scale)
    app.command(attach)


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
    from launcher.run_directory import find_run
    from replay_service.config_file import load_run_config
    from replay_service.connection import RedisEndpoint, check, connect
    from replay_service.keys import Keys
    from replay_service.run_state import Phase, RunStateStore

    if actors < 1:
        raise ConfigError(f"--actors: expected at least 1, got {actors}; `launcher down` ends a run")
    directory = find_run(run)
    if directory.holder() is None:
        raise RunDirectoryError(
            f"{directory.path} is not running: resume it with that number, launcher up --run-dir {directory.path} "
            f"--restart-behavior resume --actors {actors}"
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
    while store.read().actors != actors:
        if directory.holder() is None:
            raise RunDirectoryError(f"{directory.path} ended meanwhile")
        if time.monotonic() > deadline:
            raise RunDirectoryError(
                f"the launcher has not followed in {_SCALE_TIMEOUT_S:.0f} s; its log: {directory.logs / 'launcher.log'}"
            )
        time.sleep(_POLL_S)
    print(f"{directory.path} has places for {actors} actors; they start now")
    return 0


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
            f"Ctrl-C leaves this screen, not the run; stop the run with: launcher down {directory.path}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    return watch_run(directory, console, once=False)
