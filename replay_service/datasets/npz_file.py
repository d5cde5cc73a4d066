"""The project's own dataset file: plain arrays in a `.npz`, nothing pickled.

observations     (sum of T+1, O) float32   episodes one after the other, each with its final observation
actions          (sum of T, A) float32
rewards          (sum of T,) float32
episode_lengths  (E,) int64                T of each episode
terminated       (E,) bool
truncated        (E,) bool
metadata         () str                    JSON object: how the data were made
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from replay_service.datasets.episode import AnyArray, Episode, RawEpisode
from replay_service.datasets.hdf5_file import MAX_BYTES
from replay_service.errors import DatasetError

_ARRAYS = ("observations", "actions", "rewards", "episode_lengths", "terminated", "truncated")
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


def write_npz(path: Path, episodes: Sequence[Episode], metadata: dict[str, str]) -> None:
    """Write episodes and how they were made; equal input gives equal bytes, and a reader never sees half a file.

    Raises:
        DatasetError: there is no episode to write.
    """
    if not episodes:
        raise DatasetError("expected at least one episode to write, got none")
    arrays: dict[str, AnyArray] = {
        "observations": np.concatenate([e.observations for e in episodes]),
        "actions": np.concatenate([e.actions for e in episodes]),
        "rewards": np.concatenate([e.rewards for e in episodes]),
        "episode_lengths": np.asarray([len(e.rewards) for e in episodes], dtype=np.int64),
        "terminated": np.asarray([e.terminated for e in episodes], dtype=bool),
        "truncated": np.asarray([e.truncated for e in episodes], dtype=bool),
        "metadata": np.asarray(json.dumps(metadata, sort_keys=True)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=_FIXED_TIME)  # np.savez would write the time of day
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    os.replace(partial, path)


def read_npz_metadata(path: Path) -> dict[str, str]:
    """How a dataset was made, as written by `write_npz`.

    Raises:
        DatasetError: the file is damaged or holds no metadata.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = json.loads(str(archive["metadata"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: no metadata can be read: {error}") from error
    return {str(key): str(value) for key, value in values.items()}


def read_npz(path: Path) -> Iterator[RawEpisode]:
    """Yield the episodes of a `.npz` file.

    Raises:
        DatasetError: the file is damaged, an array is missing, or the lengths disagree.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in _ARRAYS if name not in archive.files]
            if missing:
                raise DatasetError(f"{path}: expected arrays {', '.join(_ARRAYS)}, missing {', '.join(missing)}")
            _refuse_huge(path)
            arrays = {name: archive[name] for name in _ARRAYS}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise DatasetError(f"{path} is a damaged .npz file: {error}") from error
    lengths = arrays["episode_lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any():
        raise DatasetError(f"{path}: episode_lengths: expected positive integers, got {lengths.dtype} {lengths[:4]}")
    steps, count = int(lengths.sum()), len(lengths)
    expected = {
        "observations": steps + count,
        "actions": steps,
        "rewards": steps,
        "terminated": count,
        "truncated": count,
    }
    for name, length in expected.items():
        if arrays[name].ndim == 0 or len(arrays[name]) != length:
            raise DatasetError(f"{path}: {name}: expected {length} rows for {count} episodes, got {arrays[name].shape}")
    first_observation = first_step = 0
    for index, length in enumerate(lengths.tolist()):
        yield RawEpisode(
            arrays["observations"][first_observation : first_observation + length + 1],
            arrays["actions"][first_step : first_step + length],
            arrays["rewards"][first_step : first_step + length],
            bool(arrays["terminated"][index]),
            bool(arrays["truncated"][index]),
        )
        first_observation += length + 1
        first_step += length


def _refuse_huge(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > MAX_BYTES:
        raise DatasetError(f"{path} claims {claimed} bytes unpacked, the limit is {MAX_BYTES}")
