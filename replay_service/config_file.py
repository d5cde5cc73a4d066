"""Read the tables of a run's TOML file into the role's own dataclasses.

`launcher up` writes that file (`config.toml` in the run directory); a role that is started by hand reads the same
one. Unknown keys and wrong types are refused with the nearest known name.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from replay_service.config import RunConfig
from replay_service.errors import ConfigError

ROLE_TABLES = ("learner", "actor", "evaluator", "launcher")
"""Tables that belong to one role each; the rest of the file is `RunConfig`."""

NONE = "none"
"""How a configuration file writes None, for which TOML has no word."""

ConfigT = TypeVar("ConfigT")


def load_run_config(path: Path) -> RunConfig:
    """Read the settings that all roles share.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value does not fit.
    """
    table = {key: value for key, value in read_toml(path).items() if key not in ROLE_TABLES}
    return convert_table(table, RunConfig, f"{path}")


def load_role_config(path: Path, table: str, config_type: type[ConfigT]) -> ConfigT:
    """Read one role's table; a missing table gives the defaults.

    Raises:
        ConfigError: as `load_run_config`.
    """
    values, where = read_toml(path).get(table, {}), f"{path}, table [{table}]"
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a table, got {values!r}")
    return convert_table(values, config_type, where)


def convert_table(table: dict[str, Any], config_type: type[ConfigT], where: str) -> ConfigT:
    """Build a config dataclass from plain values.

    Raises:
        ConfigError: a key is unknown (the nearest known one is named) or a value has the wrong type.
    """
    _refuse_unknown_keys(table, config_type, where)
    try:
        return msgspec.convert(_with_none(table, config_type), config_type)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The text ' Did you mean ...?' for a misspelt name, or '' when nothing is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def _refuse_unknown_keys(table: dict[str, Any], config_type: Any, where: str) -> None:
    known = get_type_hints(config_type)
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}.{nearest(key, known)}")
        if not is_dataclass(known[key]):
            continue
        if isinstance(value, list):  # msgspec would take it for the table's values in their order
            raise ConfigError(f"{where}: expected one table [{key}], got a list of {len(value)}")
        if isinstance(value, dict):
            _refuse_unknown_keys(value, known[key], f"{where}, table [{key}]")


def _with_none(table: dict[str, Any], config_type: Any) -> dict[str, Any]:
    hints = get_type_hints(config_type)
    converted: dict[str, Any] = {}
    for key, value in table.items():
        if value == NONE and type(None) in get_args(hints[key]):
            converted[key] = None
        elif isinstance(value, dict) and is_dataclass(hints[key]):
            converted[key] = _with_none(value, hints[key])
        else:
            converted[key] = value
    return converted


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as plain tables.

    Raises:
        ConfigError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except ValueError as error:  # of TOML, of its encoding, or of a number with thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
