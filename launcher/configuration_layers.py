"""The layers of an experiment's configuration, from the command line down to the preset."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.config import Dict, Env

from launcher.experiment import ExperimentConfig, preset_layer, preset_name
from launcher.run_directory import RunDirectory
from launcher.silent_conversions import refuse_silent_conversions
from launcher.up_command import UpOptions
from learner.config import PRESETS
from replay_service.config import AUTO_ACTORS, RunConfig
from replay_service.config_file import read_toml
from replay_service.errors import ConfigError

_ENVIRONMENT_PREFIX = "AWAC_"
_AUTO = "auto"


def _is_up(arguments: list[str]) -> bool:
    """Whether a command line is one of `launcher up`, which alone has settings of an experiment."""
    return arguments[:1] == ["up"]


def auto_as_number(arguments: list[str]) -> list[str]:
    """The number of actors is a number everywhere behind the command line, and 'auto' is a number no count has.

    Only `launcher up` measures it; another command refuses the word, as it does any that is no number.
    """
    if not _is_up(arguments):
        return arguments
    variable = f"{_ENVIRONMENT_PREFIX}ACTORS"
    if os.environ.get(variable) == _AUTO:
        os.environ[variable] = str(AUTO_ACTORS)
    found = [f"--actors={AUTO_ACTORS}" if word == f"--actors={_AUTO}" else word for word in arguments]
    for index, word in enumerate(found[:-1]):
        if word == "--actors" and found[index + 1] == _AUTO:
            found[index + 1] = str(AUTO_ACTORS)
    return found


def set_layers(app: App, arguments: list[str]) -> None:
    """Put the layers below a command line into the application: environment variables, files, preset.

    Which file and which preset is itself an option, so the line is parsed once for the file and once for the preset
    before it is parsed for good. They are layers of `launcher up`: AWAC_ENV must not tell `launcher dataset inspect`
    what to compare a dataset with.

    Raises:
        ConfigError: the configuration file cannot be read, a value would be converted into another one in silence, or
            the preset is unknown.
        RunDirectoryError: there is no run to resume.
        cyclopts.CycloptsError: the line cannot be parsed; already printed.
    """
    _put(app, [])
    if not _is_up(arguments):
        return
    environment = Env(_ENVIRONMENT_PREFIX, command=False)
    _put(app, [environment])
    if {"--help", "-h"} & set(arguments):
        return
    options, _experiment = _parse_up(app, arguments)
    layers: list[Any] = [environment]
    if options.config is not None:
        table = read_toml(options.config)
        if _is_complete(table):
            if RunDirectory(options.config.parent).had_launcher:
                del table["run_id"]  # of another run, which keeps it
            _put(app, [environment, _layer(table, str(options.config))])
            _options, wanted = _parse_up(app, arguments)
            table = adapted(table, wanted.run)
        layers.append(_layer(table, str(options.config)))
    saved = _file_to_resume(options)
    if saved is not None:
        layers.append(_layer(read_toml(saved), str(saved)))
    _put(app, layers)
    _options, experiment = _parse_up(app, arguments)
    name = preset_name(experiment.run)
    layers.append(_layer(preset_layer(name), f"preset {name}"))
    _put(app, layers)


def _put(app: App, layers: list[Any]) -> None:
    app.config = (*layers, refuse_silent_conversions)


def _is_complete(table: dict[str, Any]) -> bool:
    """Whether a configuration is one that `launcher up` wrote, in which every setting stands, chosen or not."""
    environment = table.get("environment")
    return isinstance(environment, dict) and {"env", "preset", "run_id"} <= set(table) and "learner" in table


def adapted(table: dict[str, Any], wanted: RunConfig) -> dict[str, Any]:
    """A complete configuration for another task or preset than it was written for.

    Args:
        table: of the file.
        wanted: names the task and the preset that were asked for, the file's where nothing else was.

    Returns:
        The table without the shape of an environment that is not wanted; and, where another preset is wanted, or the
        file's is the one that its task has by itself and another task is wanted, without what came from it: that
        would hide the other's.
    """
    env, own = table["env"], table["preset"]
    is_another_task = wanted.env != env
    kept = {key: value for key, value in table.items() if not (is_another_task and key == "environment")}
    if own not in PRESETS:
        return kept
    is_its_tasks_own = own == preset_name(RunConfig(env=env))
    if wanted.preset != own or (is_another_task and is_its_tasks_own):
        kept = _chosen(kept, tomllib.loads(ExperimentConfig().to_toml()), preset_layer(own))
        kept.pop("preset", None)
    return kept


def _chosen(table: dict[str, Any], defaults: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """What neither the preset nor the defaults gave."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found[key] = _chosen(value, defaults.get(key, {}), preset.get(key, {}))
        elif value != preset.get(key, defaults.get(key)):
            found[key] = value
    return found


def _parse_up(app: App, arguments: list[str]) -> tuple[UpOptions, ExperimentConfig]:
    _command, bound, _ignored = app.parse_args(arguments, exit_on_error=False, print_error=True)
    return (
        bound.arguments.get("options", UpOptions()),
        bound.arguments.get("experiment", ExperimentConfig()),
    )


def _layer(table: dict[str, Any], source: str) -> Dict:
    for key, value in table.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):  # cyclopts would merge them
            raise ConfigError(
                f"[[{key}]] in {source}: expected one table of settings: write [{key}], and write it once"
            )
    if table.get("actors") == _AUTO:
        table = {**table, "actors": AUTO_ACTORS}
    # Below the command's own name, because cyclopts drops top-level keys that are also names of commands (dataset).
    return Dict({"up": table}, source=source)


def _file_to_resume(options: UpOptions) -> Path | None:
    from launcher import run_directory

    if options.restart_behavior != "resume":
        return None
    return run_directory.find_run(options.run_dir).config
