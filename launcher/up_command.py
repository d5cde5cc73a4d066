"""The command `launcher up`, added to the command line by `launcher.cli`.

Heavy imports (ray, MuJoCo, h5py) stay inside the functions.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from launcher.experiment import ExperimentConfig
from launcher.run_directory import RestartBehavior
from launcher.unfailing_console import UnfailingConsole
from replay_service.errors import FAILURE_EXIT_CODE, USER_ERROR_EXIT_CODE, AwacError, UserError

if TYPE_CHECKING:
    from launcher.run_directory import Prepared


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
    from launcher.experiment import resolve
    from launcher.up import check_inputs, resolve_environment

    resuming = options.restart_behavior == "resume"
    path = options.run_dir or (
        run_directory.latest_path() if resuming else run_directory.default_path(experiment.run.env)
    )
    if path.is_symlink():
        path = path.resolve()  # runs/latest names a run, it is none itself
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
        print(resolved.to_toml(), end="")
        return 0
    prepared = run_directory.prepare(path, options.restart_behavior)
    return _hold_and_run(resolved, prepared, wants_detaching=options.detach)


def _hold_and_run(resolved: ExperimentConfig, prepared: Prepared, *, wants_detaching: bool) -> int:
    """Run an experiment in its directory, which is held for as long; returns the exit code."""
    from launcher import run_directory
    from launcher.experiment import refuse_changes
    from launcher.overwritten_run import delete_from_redis
    from launcher.run_settings import changed_settings
    from launcher.up import Run

    directory = prepared.run
    console, changes, has_begun = UnfailingConsole(), "", False
    before = directory.config.read_text(encoding="utf-8") if prepared.resumes else ""
    with directory.held():
        directory.ready.unlink(missing_ok=True)  # until this session's Redis is open, `launcher down` asks by signal
        if prepared.resumes:
            refuse_changes(_saved(directory.config), resolved)
            changes = changed_settings(directory.config, resolved)
            if changes:
                print(f"resumed with other settings than before: {changes}", file=sys.stderr)
        directory.write_config(resolved.to_toml())
        latest = run_directory.remember_latest(directory.path)
        if wants_detaching:
            from launcher.detached import detach

            code = detach(directory)
            if code is not None:
                if code == USER_ERROR_EXIT_CODE and not prepared.resumes:
                    run_directory.forget_unstarted(prepared, latest)
                return code
            console = UnfailingConsole()
        _log_to(directory.logs / "launcher.log")
        if changes:
            logging.getLogger(__name__).warning("resumed with other settings than before: %s", changes)

        def begun() -> None:
            nonlocal has_begun
            has_begun = True
            if prepared.deletes and prepared.aside is not None:
                delete_from_redis(prepared.aside)
            prepared.begun()

        run = Run(resolved, directory, console, begun=begun)
        try:
            status = run.execute()
        except UserError:
            if prepared.resumes and not has_begun:
                directory.write_config(before)
            if not prepared.resumes and not wants_detaching:  # else the one in the terminal does, once it has read why
                run_directory.forget_unstarted(prepared, latest)
            raise
        except AwacError as error:
            print(f"error: {error}", file=sys.stderr)
            run.summary_lines("failed")
            return FAILURE_EXIT_CODE
    run.summary_lines(status)
    return 0


def _saved(path: Path) -> ExperimentConfig:
    from learner.config import LearnerConfig
    from replay_service.config_file import load_role_config, load_run_config

    return ExperimentConfig(run=load_run_config(path), learner=load_role_config(path, "learner", LearnerConfig))


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
