"""The command line: `launcher up | status | down | ...`.

Heavy imports (ray, MuJoCo, h5py) stay inside the commands, so that `launcher --help` is quick.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter
from cyclopts.config import Dict, Env
from rich.console import Console

from launcher.data_commands import add_data_commands
from launcher.dataset_commands import add_dataset_commands
from launcher.experiment import ExperimentConfig, preset_layer, preset_name
from launcher.mistakes import in_words
from launcher.run_commands import add_run_commands
from replay_service.config import AUTO_ACTORS, require_at_least
from replay_service.config_file import read_toml
from replay_service.errors import USER_ERROR_EXIT_CODE, AwacError, ConfigError, RunDirectoryError, UserError

if TYPE_CHECKING:
    from launcher.run_directory import Prepared

_ENVIRONMENT_PREFIX = "AWAC_"
_FAILURE_EXIT_CODE = 1
_INTERRUPT_EXIT_CODE = 130
_AUTO = "auto"
_DOWN_TIMEOUT_S = 120.0

app = App(
    name="launcher",
    version=lambda: version("awac-online"),
    help="Offline-to-online reinforcement learning with AWAC: one learner, many actors, a Redis replay service.",
    help_on_error=False,
)
add_dataset_commands(app)
add_data_commands(app)
add_run_commands(app)


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """Options of `launcher up` that are not part of the experiment."""

    config: Path | None = None
    """Configuration file (TOML); command-line options and AWAC_* environment variables win over it."""
    run_dir: Path | None = None
    """Directory of the run. Default: runs/<env>-<time>; with --restart-behavior resume the latest run."""
    restart_behavior: Annotated[str | None, Parameter(name="--restart-behavior")] = None
    """What to do with a run that is in the directory: resume, restart (keep it aside) or overwrite (delete it)."""
    dry_run: bool = False
    """Check everything, print the resolved configuration, start nothing."""
    detach: bool = False
    """Go on without the terminal once the run is up: `launcher attach` shows it, `launcher down` stops it."""


@app.command
def up(
    experiment: Annotated[ExperimentConfig, Parameter(name="*")] = ExperimentConfig(),  # noqa: B008 - frozen
    *,
    options: Annotated[UpOptions, Parameter(name="*")] = UpOptions(),
) -> int:
    """Run an experiment: seed the buffer, pretrain offline, fine-tune online, evaluate.

    Ctrl-C once stops in order and leaves a run that can be resumed; twice ends at once.
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
    prepared = run_directory.prepare(path, _behavior(options.restart_behavior))
    return _hold_and_run(resolved, prepared, wants_detaching=options.detach)


def _hold_and_run(resolved: ExperimentConfig, prepared: Prepared, *, wants_detaching: bool) -> int:
    """Run an experiment in its directory, which is held for as long; returns the exit code."""
    from launcher import run_directory
    from launcher.experiment import refuse_changes
    from launcher.overwritten_run import delete_from_redis
    from launcher.run_settings import changed_settings
    from launcher.up import Run, write_config

    directory = prepared.run
    console, changes = Console(), ""
    with directory.held():
        if prepared.resumes:
            refuse_changes(_saved(directory.config), resolved)
            changes = changed_settings(directory.config, resolved)
            if changes:
                print(f"resumed with other settings than before: {changes}", file=sys.stderr)
        write_config(resolved, directory)
        latest = run_directory.remember_latest(directory.path)
        if wants_detaching:
            from launcher.detached import detach

            code = detach(directory)
            if code is not None:
                if code == USER_ERROR_EXIT_CODE and not prepared.resumes:
                    run_directory.forget_unstarted(prepared, latest)
                return code
            console = Console()
        _log_to(directory.logs / "launcher.log")
        if changes:
            logging.getLogger(__name__).warning("resumed with other settings than before: %s", changes)

        def begun() -> None:
            if prepared.deletes and prepared.aside is not None:
                delete_from_redis(prepared.aside)
            prepared.begun()

        run = Run(resolved, directory, console, begun=begun)
        try:
            status = run.execute()
        except UserError:
            if not prepared.resumes and not wants_detaching:  # else the one in the terminal does, once it has read why
                run_directory.forget_unstarted(prepared, latest)
            raise
        except AwacError as error:
            print(f"error: {error}", file=sys.stderr)
            run.summary_lines("failed")
            return _FAILURE_EXIT_CODE
    run.summary_lines(status)
    return 0


@app.command
def status(run: Path | None = None, /) -> int:
    """Show how a run is doing.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    """
    import json

    from launcher.dashboard import evaluation_table
    from launcher.display import plain_line
    from launcher.rates import Rates
    from launcher.run_connection import snapshot_reader
    from launcher.run_directory import find_run

    directory = find_run(run)
    holder = directory.holder()
    console = Console()
    reader = snapshot_reader(directory) if holder else None
    if reader is None and holder is not None:
        console.print(
            f"{directory.path}: launcher process {holder.get('pid')} holds it; it is starting, or its Redis does not "
            "answer",
            highlight=False,
            soft_wrap=True,
        )
        return 0
    if reader is None:
        if not directory.summary.exists():
            console.print(f"{directory.path}: not running, and it has no summary yet", highlight=False)
            return 0
        summary = json.loads(directory.summary.read_text(encoding="utf-8"))
        if summary["status"] == "running":
            summary["status"] = "interrupted (its launcher is gone; resume it)"
        shown = {key: value for key, value in summary.items() if key != "evaluations"}
        for key, value in shown.items():
            console.print(f"{key:>24}  {value}", highlight=False, markup=False)
        return 0
    rates = Rates()
    rates.update(reader.read())
    time.sleep(1.0)
    snapshot = reader.read()
    rates.update(snapshot)
    pid = holder and holder.get("pid")
    console.print(f"{directory.path}: running, launcher process {pid}", highlight=False, soft_wrap=True)
    console.print(plain_line(snapshot, rates, ""), highlight=False, soft_wrap=True)
    if snapshot.evaluations:
        console.print(evaluation_table(snapshot.evaluations[-10:]))
    return 0


@app.command
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


@app.command
def down(run: Path | None = None, /) -> int:
    """Stop a run in order; it can be resumed.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    """
    import signal

    from launcher.run_directory import find_run
    from replay_service.config_file import load_run_config
    from replay_service.connection import RedisEndpoint, connect
    from replay_service.keys import Keys
    from replay_service.run_state import RunStateStore

    directory = find_run(run)
    holder = directory.holder()
    if holder is None:
        print(f"{directory.path} is not running")
        return 0
    try:
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
        os.kill(int(str(holder["pid"])), signal.SIGTERM)
    print(f"stopping {directory.path} ...")
    deadline = time.monotonic() + _DOWN_TIMEOUT_S
    while directory.holder() is not None:
        if time.monotonic() > deadline:
            raise RunDirectoryError(
                f"{directory.path} is still held by process {holder.get('pid')} after {_DOWN_TIMEOUT_S:.0f} s; "
                f"see {directory.logs / 'launcher.log'}"
            )
        time.sleep(0.2)
    print("stopped")
    return 0


@app.command
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
        names = ", ".join(path.stem for path in sorted(directory.logs.glob("*.log"))) or "none"
        raise ConfigError(f"--role: expected one of {names}, got {role!r}")
    for path in found:
        print(f"==> {path} <==")
        tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        print("\n".join(tail))
    return 0


@app.command
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
    return _FAILURE_EXIT_CODE if bad else 0


@app.command
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
    return 0 if passed else _FAILURE_EXIT_CODE


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; no traceback where a sentence says what is wrong."""
    arguments = auto_as_number(list(sys.argv[1:] if tokens is None else tokens))
    only_lists_commands = arguments in ([], ["-h"], ["--help"])
    if only_lists_commands:
        app.help_format = "plaintext"  # the reader of Markdown takes a quarter of the whole time to load
    try:
        _layer_configuration(arguments)
        result: Any = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
    except cyclopts.CycloptsError:
        return USER_ERROR_EXIT_CODE  # cyclopts has printed it
    except KeyboardInterrupt:
        return _INTERRUPT_EXIT_CODE
    except BrokenPipeError:
        # Who read the output has had enough, as in `launcher replay ls | head`; what is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILURE_EXIT_CODE
    except Exception as error:
        told = in_words(error)
        if told is None:
            raise
        print(f"error: {told.text}", file=sys.stderr)
        return told.exit_code
    finally:
        if only_lists_commands:
            app.help_format = None
    return result if isinstance(result, int) else 0


def auto_as_number(arguments: list[str]) -> list[str]:
    """The number of actors is a number everywhere behind the command line, and 'auto' is a number no count has."""
    variable = f"{_ENVIRONMENT_PREFIX}ACTORS"
    if os.environ.get(variable) == _AUTO:
        os.environ[variable] = str(AUTO_ACTORS)
    found = [f"--actors={AUTO_ACTORS}" if word == f"--actors={_AUTO}" else word for word in arguments]
    for index, word in enumerate(found[:-1]):
        if word == "--actors" and found[index + 1] == _AUTO:
            found[index + 1] = str(AUTO_ACTORS)
    return found


def _layer_configuration(arguments: list[str]) -> None:
    """Set up the layers below the command line: environment variables, files, preset.

    Which file and which preset is itself an option, so the line is parsed once for the file and once for the preset
    before it is parsed for good.
    """
    environment = Env(_ENVIRONMENT_PREFIX, command=False)
    app.config = (environment,)
    if not arguments or arguments[0] != "up" or {"--help", "-h"} & set(arguments):
        return
    options, _experiment = _parse_up(arguments)
    layers: list[Any] = [environment]
    if options.config is not None:
        layers.append(_layer(read_toml(options.config), str(options.config)))
    saved = _file_to_resume(options)
    if saved is not None:
        layers.append(_layer(read_toml(saved), str(saved)))
    app.config = tuple(layers)
    _options, experiment = _parse_up(arguments)
    name = preset_name(experiment.run)
    layers.append(_layer(preset_layer(name), f"preset {name}"))
    app.config = tuple(layers)


def _parse_up(arguments: list[str]) -> tuple[UpOptions, ExperimentConfig]:
    _command, bound, _ignored = app.parse_args(arguments, exit_on_error=False, print_error=True)
    return (
        bound.arguments.get("options", UpOptions()),
        bound.arguments.get("experiment", ExperimentConfig()),
    )


def _layer(table: dict[str, Any], source: str) -> Dict:
    if table.get("actors") == _AUTO:
        table = {**table, "actors": AUTO_ACTORS}
    # Below the command's own name, because cyclopts drops top-level keys that are also names of commands (dataset).
    return Dict({"up": table}, source=source)


def _file_to_resume(options: UpOptions) -> Path | None:
    from launcher import run_directory

    if _behavior(options.restart_behavior) != "resume":
        return None
    return run_directory.find_run(options.run_dir).config


def _behavior(name: str | None) -> Any:
    if name not in (None, "resume", "restart", "overwrite"):
        raise ConfigError(f"--restart-behavior: expected resume, restart or overwrite, got {name!r}")
    return name


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


if __name__ == "__main__":
    sys.exit(main())
