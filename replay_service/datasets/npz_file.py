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
import math
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
        values = json.loads(str(_read_members(path, ("metadata",))["metadata"]))
    except ValueError as error:
        raise DatasetError(f"{path}: metadata: expected a JSON object: {error}") from error
    return {str(key): str(value) for key, value in values.items()}


def read_npz(path: Path) -> Iterator[RawEpisode]:
    """Yield the episodes of a `.npz` file.

    Raises:
        DatasetError: the file is damaged, an array is missing, or the lengths disagree.
    """
    arrays = _read_members(path, _ARRAYS)
    stored = arrays["episode_lengths"]
    if stored.ndim != 1 or stored.dtype.kind not in "iu" or (stored.astype(np.int64) < 1).any():
        raise DatasetError(f"{path}: episode_lengths: expected positive integers, got {stored.dtype} {stored[:4]}")
    lengths = stored.astype(np.int64)
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


def _read_members(path: Path, names: Sequence[str]) -> dict[str, AnyArray]:
    try:
        with zipfile.ZipFile(path) as archive:
            present = set(archive.namelist())
            missing = [name for name in names if f"{name}.npy" not in present]
            if missing:
                raise DatasetError(f"{path}: expected arrays {', '.join(names)}, missing {', '.join(missing)}")
            return {name: _read_array(archive, f"{name}.npy") for name in names}
    except DatasetError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise a dozen types for damaged bytes
        raise DatasetError(f"{path} is a damaged .npz file: {type(error).__name__}: {error}") from error


def _read_array(archive: zipfile.ZipFile, name: str) -> AnyArray:
    """Read one array; `numpy.load` would allocate whatever the header claims before it looks at the data."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        claimed = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or dtype.kind not in "fiubU":
            raise ValueError(f"{name}: expected numbers or text, got {dtype}")
        if claimed > min(size, MAX_BYTES):
            raise ValueError(f"{name} claims {claimed} bytes, the file holds {size}")
        data = file.read(claimed)
    if len(data) != claimed:
        raise ValueError(f"{name}: expected {claimed} bytes, got {len(data)}")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran_order else "C")
