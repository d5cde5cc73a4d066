"""Write episodes as a Minari dataset (its HDF5 layout, version 0.5), which Minari and `load_dataset` both read.

DIRECTORY/data/main_data.hdf5   a group `episode_<i>` an episode, the final observation included
DIRECTORY/data/metadata.json    what Minari wants to know, and `provenance`: how the data were made
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from replay_service.datasets.episode import Episode
from replay_service.errors import DatasetError

_MINARI_VERSION = "0.5.4"
_NAME = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z0-9_.]-v\d+\Z")
_BYTES_A_MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCard:
    """What a dataset says of itself."""

    observation_dim: int
    action_dim: int
    env_spec: str
    """gymnasium's `EnvSpec.to_json()`, so that Minari can make the environment again."""
    algorithm: str
    description: str
    provenance: Mapping[str, Any]
    """How the data were made, as JSON values."""
    action_bounds: tuple[Sequence[float], Sequence[float]] = ((), ())
    """(low, high) of the actions as they are stored, A values each; empty for -1 and 1."""


def check_minari_name(directory: Path) -> None:
    """Refuse a directory whose name Minari would not take as a dataset's.

    Raises:
        DatasetError: the name does not end in a version, or the directory is in use.
    """
    if not _NAME.match(directory.name):
        raise DatasetError(f"{directory}: expected a name that ends in a version, as in pen-bc-v0")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DatasetError(f"{directory} exists already: remove it, or give another name")


def write_minari(directory: Path, episodes: Iterable[Episode], card: DatasetCard) -> tuple[int, int]:
    """Write episodes one after the other; a reader never sees half a dataset.

    The compressed file is made in memory, about as many bytes as it has then on disk: up to 350 bytes a step of the
    hand tasks. HDF5 itself writes some data only as it lets go of them, where h5py can raise no error: a disk that was
    full for a moment would leave zeros in a file that says it is whole.

    Args:
        directory: is made; its name ends in a version.
        episodes: may be a generator, only one is held uncompressed at a time.
        card: goes into the metadata.

    Returns:
        Episodes and steps written.

    Raises:
        DatasetError: there is no episode, the directory's name is unfit or in use, or it cannot be written.
    """
    check_minari_name(directory)
    image, count, steps = _make_hdf5(episodes)
    if not count:
        raise DatasetError("expected at least one episode to write, got none")
    metadata = _metadata(directory, card, count, steps, len(image))
    partial = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.partial")
    try:
        (partial / "data").mkdir(parents=True)
        _write(partial / "data" / "main_data.hdf5", image)
        _write(partial / "data" / "metadata.json", json.dumps(metadata).encode())
        if directory.exists():
            directory.rmdir()  # empty, as checked above
        os.replace(partial, directory)
    except OSError as error:
        raise DatasetError(f"{directory}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count, steps


def _write(path: Path, content: bytes | memoryview) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a file system may tell only now that it has no room


def _make_hdf5(episodes: Iterable[Episode]) -> tuple[memoryview, int, int]:
    """The file's bytes, and how many episodes and steps are in it."""
    image, count, steps = io.BytesIO(), 0, 0
    with h5py.File(image, "w", track_order=True) as file:
        for episode in episodes:
            length = len(episode.rewards)
            group = file.create_group(f"episode_{count}")
            group.attrs["id"] = count
            group.attrs["total_steps"] = length
            last = np.arange(length) == length - 1
            for name, array in (
                ("observations", episode.observations),
                ("actions", episode.actions),
                ("rewards", episode.rewards),
                ("terminations", last & episode.terminated),
                ("truncations", last & episode.truncated),
            ):
                group.create_dataset(name, data=array, compression="gzip", compression_opts=1, track_times=False)
            count += 1
            steps += length
    return image.getbuffer(), count, steps


def _metadata(directory: Path, card: DatasetCard, episodes: int, steps: int, size_bytes: int) -> dict[str, Any]:
    return {
        "total_episodes": episodes,
        "total_steps": steps,
        "data_format": "hdf5",
        "observation_space": _box([float("-inf")] * card.observation_dim, [float("inf")] * card.observation_dim),
        "action_space": _box(
            list(card.action_bounds[0]) or [-1.0] * card.action_dim,
            list(card.action_bounds[1]) or [1.0] * card.action_dim,
        ),
        "env_spec": card.env_spec,
        "dataset_id": _dataset_id(directory),
        "author": ["awac-online"],
        "algorithm_name": card.algorithm,
        "description": card.description,
        "minari_version": _MINARI_VERSION,
        "dataset_size": round(size_bytes / _BYTES_A_MB, 1),
        "provenance": json.dumps(dict(card.provenance), sort_keys=True),
    }


def _box(low: list[float], high: list[float]) -> str:
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [len(low)], "low": low, "high": high})


def _dataset_id(directory: Path) -> str:
    """The path below Minari's root when the directory lies there, else the directory's name."""
    root = os.environ.get("MINARI_DATASETS_PATH")
    path = directory.resolve()
    if root and path.is_relative_to(Path(root).expanduser().resolve()):
        return path.relative_to(Path(root).expanduser().resolve()).as_posix()
    return path.name
