"""What `launcher up --dry-run` looks at beyond the settings: whether the start itself would be refused.

Nothing on the disk is changed, not even a lock, so `run_directory.prepare`, which decides at the start, is not asked.
"""

from __future__ import annotations

from pathlib import Path

from launcher.experiment import ExperimentConfig, refuse_changes, saved_experiment
from launcher.run_directory import (
    RestartBehavior,
    RunDirectory,
    refuse_own_folder,
    refuse_roles_without_launcher,
)
from replay_service.errors import RunDirectoryError
from replay_service.redis_server import find_server


def refuse_start(resolved: ExperimentConfig, path: Path, behavior: RestartBehavior | None) -> None:
    """Refuse what the start of a run would refuse of its directory, of a changed setting, or of Redis's program.

    Args:
        resolved: the experiment.
        path: the run directory.
        behavior: what is to be done with a run that is in it.

    Raises:
        RunDirectoryError: the directory does not fit the behaviour, is in use, or cannot be read.
        ConfigError: the run cannot be resumed with these settings.
        RedisUnavailable: the server that is named is none.
    """
    run = RunDirectory(path)
    try:
        _refuse_directory(run, behavior)
    except OSError as error:
        raise RunDirectoryError(f"cannot read the run directory {path}: {error.strerror}") from error
    if behavior == "resume":
        refuse_changes(saved_experiment(run.config), resolved)
    # One that is not named need not be here: a configuration may be made on a machine that has no Redis.
    if resolved.run.replay.server_path and not resolved.run.redis_url:
        find_server(resolved.run.replay.server_path)


def _refuse_directory(run: RunDirectory, behavior: RestartBehavior | None) -> None:
    path = run.path
    if run.holds_run:
        _refuse_run(run, behavior)
    elif behavior == "resume":
        raise RunDirectoryError(f"{path} holds no run to resume")
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunDirectoryError(f"{path} exists and holds something else than a run: choose another --run-dir")


def _refuse_run(run: RunDirectory, behavior: RestartBehavior | None) -> None:
    if run.is_part:
        raise RunDirectoryError(
            f"{run.path} is this machine's part of a run that another machine's launcher runs: give the command there, "
            "or choose another --run-dir"
        )
    if behavior is None:
        raise RunDirectoryError(
            f"{run.path} holds a run already: add --restart-behavior resume (go on), restart (keep it aside and begin "
            "anew) or overwrite (delete it), or choose another --run-dir"
        )
    holder = run.holder() or run.reader()
    if holder is not None:
        raise RunDirectoryError(
            f"{run.path} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}: a start would be "
            "refused until it has ended"
        )
    if behavior == "overwrite":
        refuse_own_folder(run.path)
    if behavior != "resume":
        refuse_roles_without_launcher(run, "end them first, where they were started")
