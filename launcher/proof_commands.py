"""The commands that prove a run sound: `launcher doctor | chaos`.

Heavy imports stay inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cyclopts import App

from replay_service.errors import FAILURE_EXIT_CODE, ConfigError


def add_proof_commands(app: App) -> None:
    """Register the commands."""
    app.command(doctor)
    app.command(chaos)


def doctor(run: Path | None = None, /) -> int:
    """Prove from a run's data that nothing is lost, doubled or damaged; exit code 1 when something is.

    A run that is not up is examined too: its Redis is started for the time of the examination.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    """
    from launcher.doctor import examine
    from launcher.learner_node import LearnerNode
    from launcher.run_connection import redis_of
    from launcher.run_directory import find_run
    from replay_service.config_file import load_run_config

    directory = find_run(run)
    config = load_run_config(directory.config)
    with redis_of(directory, config) as client:
        findings = examine(client, config, directory.checkpoints, elsewhere=LearnerNode(directory).read())
    for finding in findings:
        print(finding)
    bad = sum(not finding.sound for finding in findings)
    print(f"{directory.path}: " + (f"{bad} of {len(findings)} findings are BAD" if bad else "sound"))
    return FAILURE_EXIT_CODE if bad else 0


def chaos(
    run: Path | None = None,
    /,
    *,
    kill: Literal["actor", "learner", "replay", "redis", "evaluator", "ray-worker"],
    every: str = "",
    times: int = 0,
    limit: str = "120s",
    json: bool = False,
) -> int:
    """Kill a role of a running run for real and report how it mends; exit code 1 when it does not.

    A line a drill: seconds until the role worked again; steps lost, doubled and unaccounted, counted again from the
    data; success before and after.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    kill
        What gets SIGKILL. Actors take turns; a ray-worker is the one above a pool of actors.
    every
        Kill again after this time (30s, 5m), until --times, Ctrl-C or the end of the run. Default: one kill.
    times
        Most kills with --every; 0: no end.
    limit
        Longest time until the role works again, and after that until the count is sound.
    json
        Print one JSON object a drill instead.
    """
    from actors.config import ActorConfig
    from launcher.chaos import check_restart_budget, parse_duration, run_drills
    from launcher.experiment import LauncherConfig
    from launcher.run_directory import find_run
    from replay_service.config_file import load_role_config, load_run_config

    directory = find_run(run)
    every_s = parse_duration("--every", every) if every else None
    if times < 0 or (times and every_s is None):
        raise ConfigError(f"--times: expected 1 or more beside --every, got {times}")
    if every_s is not None:
        budget: LauncherConfig | ActorConfig = (
            load_role_config(directory.config, "actor", ActorConfig)
            if kill == "actor"
            else load_role_config(directory.config, "launcher", LauncherConfig)
        )
        check_restart_budget(kill, every_s, times or None, budget)
    passed = run_drills(
        directory,
        load_run_config(directory.config),
        kill,
        every_s=every_s,
        times=times,
        limit_s=parse_duration("--limit", limit),
        as_json=json,
        say=lambda text: print(text, flush=True),
    )
    return 0 if passed else FAILURE_EXIT_CODE
