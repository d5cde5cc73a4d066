"""Values that cyclopts would turn, without a word, into others than were written: they are refused instead."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, get_args

from cyclopts import UNSET, App, ArgumentCollection, Token

from replay_service.errors import ConfigError

_LARGEST_EXACT = 2**53
"""Beyond it, what is written with a point would be rounded."""


def refuse_silent_conversions(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Look at what all layers of a command line's configuration gave; to be the last of them.

    Raises:
        ConfigError: a fraction where a whole number is expected, which would be rounded, an empty path, which would be
            the folder that one is in, or a single value where a table is, which would be taken for the first setting
            in it.
    """
    for argument in arguments:
        for token in argument.tokens:
            if is_dataclass(argument.hint) and not isinstance(token.implicit_value, dict):  # which an empty table is
                raise ConfigError(
                    f"{_where(token, argument.name)}: expected a table of settings, got {_shown(token)}: give each "
                    f"setting in it by its own name, as in {argument.name}.{_first_setting(argument.hint)}"
                )
            if _is_whole(argument.hint) and _is_fraction(token.value):
                raise ConfigError(f"{_where(token, argument.name)}: expected a whole number, got {token.value}")
            if _is_path(argument.hint) and not token.value and token.implicit_value is UNSET:
                raise ConfigError(
                    f"{_where(token, argument.name)}: expected a path, got an empty one: an unset variable? The folder "
                    "that you are in is ."
                )


def _is_whole(hint: Any) -> bool:
    """Whether whole numbers are all the numbers that a type takes: int, int | None, tuple[int, ...]."""
    return hint is int or int in get_args(hint)


def _is_path(hint: Any) -> bool:
    return hint is Path or Path in get_args(hint)


def _is_fraction(text: str) -> bool:
    if "." not in text:
        return False  # cyclopts itself refuses 1e-3, nan and what is no number
    try:
        number = Decimal(text)  # not float, which rounds what is beyond 2**53 before anybody can look
    except InvalidOperation:
        return False
    return number != number.to_integral_value() or abs(number) > _LARGEST_EXACT


def _where(token: Token, name: str) -> str:
    found = token.keyword or name
    return f"{found} in {token.source}" if found.startswith("[") and token.source != "cli" else found


def _shown(token: Token) -> str:
    return repr(token.value if token.implicit_value is UNSET else token.implicit_value)


def _first_setting(table: Any) -> str:
    return fields(table)[0].name.replace("_", "-")
