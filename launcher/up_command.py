"""The command `launcher up`, added to the command line by `launcher.cli`.

Heavy imports (ray, MuJoCo, h5py) stay inside the functions.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from launcher.experiment import ExperimentConfig
from launcher.run_preparation import RestartBehavior
from launcher.unfailing_console import UnfailingConsole
from replay_service.errors import FAILURE_EXIT_CODE, AwacError, RunDirectoryError, UserError


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """Options of `launcher up` that are not part of the experiment."""

    config: Path | None = None
    """Configuration file (TOML); command-line options and AWAC_* environment variables win over it."""
    run_dir: Path | None = None
    """Directory of the run. Default: runs/<env>-<time>; with --restart-behavior resume the latest run."""
    restart_behavior: RestartBehavior | None = None
    """What to do with a run that is in the directory: resume, restart (keep it aside) or overwrite (delete it)."""
    dry_run: bool = False
    """Check everything, print the resolved configuration, start nothing."""
    detach: bool = False
    """Go on without the terminal once the run is up: `launcher attach` shows it, `launcher down` stops it."""


def add_up_command(app: App) -> None:
    """Register the command."""
    app.command(up)


def up(
    experiment: Annotated[ExperimentConfig, Parameter(name="*")] = ExperimentConfig(),  # noqa: B008 - frozen
    *,
    options: Annotated[UpOptions, Parameter(name="*")] = UpOptions(),
) -> int:
    """Run an experiment: seed the buffer, pretrain offline, fine-tune online, evaluate.

    Ctrl-C once stops in order and leaves a run that can be resumed; twice ends at once.

    The defaults below are those of the authors' script (`--preset published`). A preset has others in their place, and
    the three hand tasks have `strong` when none is named: `launcher up --dry-run` prints what a run gets. In the
    learner's settings [hand], [paper] and [mujoco] say where a default is from: the authors' script for the hand tasks,
    the paper, and their script for locomotion.
    """
    from launcher import run_directory
    from launcher.autotune import with_measured_actors
    from launcher.doubtful_settings import doubts
    from launcher.dry_run import refuse_start
    from launcher.experiment import resolve
    from launcher.up import check_inputs, resolve_environment

    resuming = options.restart_behavior == "resume"
    path = options.run_dir or (
        run_directory.latest_path() if resuming else run_directory.default_path(experiment.run.env)
    )
    path = run_directory.chosen_path(path)
    experiment = _keep_password_out(experiment)
    environment = resolve_environment(experiment.run)
    run_id = f"{path.name}-{time.strftime('%Y%m%d%H%M%S')}"
    resolved = resolve(experiment, run_id=run_id, environment=environment)
    check_inputs(resolved.run, resuming=resuming)
    resolved, reason = with_measured_actors(resolved)
    if reason:
        print(reason, file=sys.stderr)
    for doubt in doubts(resolved):
        print(f"warning: {doubt}", file=sys.stderr)
    if options.dry_run:
        refuse_start(resolved, path, options.restart_behavior)
        print(resolved.to_toml(), end="")
        return 0
    return _prepare_and_run(resolved, path, options.restart_behavior, wants_detaching=options.detach)


def _prepare_and_run(
    resolved: ExperimentConfig, path: Path, behavior: RestartBehavior | None, *, wants_detaching: bool
) -> int:
    """Run an experiment in its directory, which is held for as long; returns the exit code."""
    from launcher.detached import detach
    from launcher.experiment import refuse_changes, saved_experiment
    from launcher.former_settings import RESUMED
    from launcher.interrupts import keeping_ctrl_c_back
    from launcher.run_directory import RunDirectoryInUse
    from launcher.run_preparation import await_free, prepare
    from launcher.run_settings import changed_settings
    from launcher.run_start import RunStart
    from launcher.up import Run

    changes, run, tell_waiting = "", None, lambda: None
    await_free(path, behavior)
    with ExitStack() as stack, ExitStack() as uninterrupted:
        uninterrupted.enter_context(keeping_ctrl_c_back())
        prepared = prepare(path, behavior)  # from here on all that fails, or a Ctrl-C, is to be taken back
        hold = stack.enter_context(prepared.hold)
        directory, start = prepared.run, RunStart(prepared)
        try:
            uninterrupted.close()
            if not prepared.resumes:
                stack.enter_context(directory.held())
                hold.close()
            directory.ready.unlink(missing_ok=True)  # until Redis is open, `launcher down` asks by signal
            if prepared.resumes:
                refuse_changes(saved_experiment(directory.config), resolved)
                changes = changed_settings(directory.config, resolved)
                if changes:
                    print(f"{RESUMED}{changes}", file=sys.stderr)
            start.write(resolved.to_toml())
            if wants_detaching:
                waiting = detach(directory, prepared.aside)
                if isinstance(waiting, int):
                    return waiting
                tell_waiting = waiting.tell
            _log_to(directory.launcher_log)
            if changes:
                logging.getLogger(__name__).warning("%s%s", RESUMED, changes)
            run = Run(resolved, directory, UnfailingConsole(), begun=start.begun, up=tell_waiting)
            status = run.execute()
        except RunDirectoryInUse:
            start.name_kept()
            raise  # the directory is another launcher's
        except BaseException as error:
            is_taken_back = start.failed(error, roles_may_live=run is not None and run.roles_may_live)
            if run is None and isinstance(error, OSError):
                raise RunDirectoryError(f"cannot write the run directory {directory.path}: {error.strerror}") from error
            if run is None or isinstance(error, UserError) or not isinstance(error, AwacError):
                raise
            print(f"error: {error}", file=sys.stderr)
            if not is_taken_back:
                run.summary_lines("failed")
            return FAILURE_EXIT_CODE
        if start.stopped():
            print("stopped before the run had begun: nothing of it is left to go on with")
            return 0
    run.summary_lines(status)
    return 0


def _keep_password_out(experiment: ExperimentConfig) -> ExperimentConfig:
    """Move a password from the URL, which is written to config.toml, to the environment of our own processes."""
    from replay_service.connection import PASSWORD_VARIABLE, RedisEndpoint, password_from_environment

    if not experiment.run.redis_url:
        return experiment
    endpoint = RedisEndpoint.from_url(experiment.run.redis_url, password_from_environment())
    if endpoint.password:
        os.environ[PASSWORD_VARIABLE] = endpoint.password
    return replace(experiment, run=replace(experiment.run, redis_url=endpoint.url))


def _log_to(path: Path) -> None:
    from replay_service.process import configure_logging

    configure_logging("launcher", path)
