"""`launcher watch`: follow a run from another terminal than its launcher's."""

from __future__ import annotations

import shlex
import time

from rich.console import Console

from launcher.dashboard import Dashboard
from launcher.display import Display
from launcher.rates import Rates
from launcher.run_connection import read_if_there, snapshot_reader
from launcher.run_directory import RunDirectory, await_last_roles, reading_note, refuse_roles_without_launcher
from launcher.snapshot import Snapshot, SnapshotReader
from replay_service.config_file import load_run_config
from replay_service.errors import RunDirectoryError

_TICK_S = 0.5
_RATE_WINDOW_S = 1.0
_WAITING_NOTICE = "its Redis does not answer: the run is starting, or the replay service brings Redis back"


def watch_run(directory: RunDirectory, console: Console, *, once: bool) -> int:
    """Show a run until it ends.

    Args:
        directory: where the run lies.
        console: where to show it.
        once: show the screen once and return.

    Returns:
        The exit code, 0.

    Raises:
        RunDirectoryError: the run is not up.
    """
    if directory.holder() is None:
        status = f"`launcher status {shlex.quote(str(directory.path))}`"
        await_last_roles(directory)
        refuse_roles_without_launcher(directory, f"{status} shows their records")
        raise RunDirectoryError(f"{directory.path} is not running{reading_note(directory)}; {status} says how it ended")
    run = load_run_config(directory.config)
    title = f"{run.env}  seed {run.seed}  {directory.path}"
    if once:
        return _show_once(directory, console, title)
    try:
        with Display(title, console) as display:
            last = _follow(directory, display)
    except KeyboardInterrupt:
        return 0
    if last is not None and console.is_terminal:
        console.print(Dashboard(last, display.rates, title))
    console.print(f"{directory.path} is down", highlight=False, markup=False, soft_wrap=True)
    return 0


def _show_once(directory: RunDirectory, console: Console, title: str) -> int:
    reader = snapshot_reader(directory)
    if reader is None:
        raise RunDirectoryError(f"{directory.path}: {_WAITING_NOTICE}")
    rates = Rates()
    rates.update(reader.read())
    time.sleep(_RATE_WINDOW_S)
    snapshot = reader.read()
    rates.update(snapshot)
    console.print(Dashboard(snapshot, rates, title))
    return 0


def _follow(directory: RunDirectory, display: Display) -> Snapshot | None:
    reader: SnapshotReader | None = None
    last: Snapshot | None = None
    while directory.holder() is not None:
        reader = reader or snapshot_reader(directory)
        if reader is None:
            display.warn(_WAITING_NOTICE)
        else:
            found = read_if_there(reader)
            if found is None:
                reader = None  # a Redis that comes back may be found anew
                continue
            last = found
            display.clear_warning()
            display.show(last)
        time.sleep(_TICK_S)
    return last
