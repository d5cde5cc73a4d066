"""What `launcher up --dry-run` looks at beyond the settings: whether the start itself would be refused.

Nothing on the disk is changed, not even a lock, so `run_preparation.prepare`, which makes the directory ready, is not
asked.
"""

from __future__ import annotations

import os
from pathlib import Path

from launcher.experiment import ExperimentConfig, refuse_changes, saved_experiment
from launcher.run_directory import RunDirectory
from launcher.run_preparation import RestartBehavior, await_free, refuse_other_roles, refuse_unfit
from replay_service.errors import RunDirectoryError
from replay_service.redis_server import find_server


def refuse_start(resolved: ExperimentConfig, path: Path, behavior: RestartBehavior | None) -> None:
    """Refuse what the start of a run would refuse of its directory, of a changed setting, or of Redis's program.

    Args:
        resolved: the experiment.
        path: the run directory.
        behavior: what is to be done with a run that is in it.

    Raises:
        RunDirectoryError: the directory does not fit the behaviour, is in use, or cannot be read or written.
        ConfigError: the run cannot be resumed with these settings.
        RedisUnavailable: the server that is named is none.
    """
    run = RunDirectory(path)
    try:
        refuse_unfit(run, behavior)
        if run.holds_run:
            _refuse_held(run)
            await_free(path, behavior)
            refuse_other_roles(run)
        _refuse_unwritable(path)
        if run.holds_run and behavior != "resume":
            _refuse_unwritable(path.absolute().parent)  # where the run is moved aside
    except OSError as error:
        raise RunDirectoryError(f"cannot read the run directory {path}: {error.strerror}") from error
    if behavior == "resume":
        refuse_changes(saved_experiment(run.config), resolved)
    # One that is not named need not be here: a configuration may be made on a machine that has no Redis.
    if resolved.run.replay.server_path and not resolved.run.redis_url:
        find_server(resolved.run.replay.server_path)


def _refuse_held(run: RunDirectory) -> None:
    holder = run.holder() or run.reader()
    if holder is not None:
        raise RunDirectoryError(
            f"{run.path} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}: a start would be "
            "refused until it has ended"
        )


def _refuse_unwritable(path: Path) -> None:
    """Refuse a run directory that could not be made or written, by the rights of what is there of it."""
    there = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not there.is_dir():
        raise RunDirectoryError(f"cannot write the run directory {path}: {there} is not a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunDirectoryError(f"cannot write the run directory {path}: {there} is not writable for you")
