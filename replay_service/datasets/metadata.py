"""What a dataset's file says about itself, as text; nothing here decides how it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from replay_service.datasets.npz_file import holds_metadata, read_npz_metadata
from replay_service.errors import DatasetError

_MINARI_CARD = "metadata.json"
_D4RL_GROUP = "metadata"
_MAX_CARD_BYTES = 2**20
_MAX_ENTRIES = 40
_SHOWN_LENGTH = 300
_SPACES = ("observation_space", "action_space")
"""Of Minari: a bound for every value, which says less than the values do."""


def read_metadata(path: Path) -> tuple[str, dict[str, str]]:
    """Name a file's format and collect what it says about itself.

    Args:
        path: a file that one of the readers has read.

    Returns:
        The format in words, and name -> text, printable and cut to a line's length.

    Raises:
        DatasetError: the metadata are damaged.
    """
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"\x89HDF"):
        return _of_hdf5(path)
    if head.startswith(b"PK"):
        return "npz of this project", _texts(read_npz_metadata(path) if holds_metadata(path) else {})
    return ("npy of paths" if head.startswith(b"\x93NUMPY") else "pickle of paths"), {}


def _of_hdf5(path: Path) -> tuple[str, dict[str, str]]:
    try:
        with h5py.File(path, "r") as file:
            is_minari = any(str(name).startswith("episode_") for name in file)
            found: dict[str, Any] = dict(file.attrs)
            group = file.get(_D4RL_GROUP)
            if isinstance(group, h5py.Group):
                group.visititems(lambda name, item: _note(found, name, item))
    except Exception as error:  # h5py raises a dozen types for damaged bytes
        raise DatasetError(f"{path}: damaged attributes: {error}") from error
    card = path.with_name(_MINARI_CARD)
    if is_minari and card.is_file():
        found |= _read_card(card)
    return ("Minari" if is_minari else "D4RL HDF5"), _texts(found)


def _note(found: dict[str, Any], name: str, item: object) -> None:
    """Keep D4RL's small texts and numbers; some files hold a policy's weights beside them."""
    if isinstance(item, h5py.Dataset) and item.size is not None and item.size <= 1:
        found[name] = item[()]


def _read_card(card: Path) -> dict[str, Any]:
    try:
        if card.stat().st_size > _MAX_CARD_BYTES:
            raise DatasetError(f"{card}: expected at most {_MAX_CARD_BYTES} bytes, got {card.stat().st_size}")
        values = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{card}: expected a JSON object: {error}") from error
    if not isinstance(values, dict):
        raise DatasetError(f"{card}: expected a JSON object, got {type(values).__name__}")
    return {name: value for name, value in values.items() if name not in _SPACES}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {_printable(name): _printable(value) for name, value in list(values.items())[:_MAX_ENTRIES]}


def _printable(value: Any) -> str:
    """Text without the control characters with which a file could rewrite the reader's terminal."""
    if isinstance(value, bytes | np.bytes_):
        value = value.decode("utf-8", errors="replace")
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."
