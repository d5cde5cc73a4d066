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
import secrets
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from replay_service.datasets.claims import Claims
from replay_service.datasets.episode import AnyArray, Episode, RawEpisode
from replay_service.datasets.npy_header import NpyHeader, read_npy_header
from replay_service.errors import DatasetError

_ARRAYS = ("observations", "actions", "rewards", "episode_lengths", "terminated", "truncated")
_METADATA = "metadata"
_MAX_METADATA_BYTES = 2**20
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


def write_npz(path: Path, episodes: Sequence[Episode], metadata: dict[str, str]) -> None:
    """Write episodes and how they were made; equal input gives equal bytes, and a reader never sees half a file.

    Of a link, what it leads to is written.

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
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        _write_members(partial, arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def holds_metadata(path: Path) -> bool:
    """Whether a sound `.npz` says how it was made; one that somebody made by hand need not."""
    with zipfile.ZipFile(path) as archive:
        return f"{_METADATA}.npy" in archive.namelist()


def read_npz_metadata(path: Path) -> dict[str, str]:
    """How a dataset was made, as written by `write_npz`.

    Raises:
        DatasetError: the file is damaged or holds no metadata.
    """
    (text,) = _read_members(path, str(path), (_METADATA,), _admit_metadata)
    try:
        values = json.loads(str(text))
    except ValueError as error:
        raise DatasetError(f"{path}: metadata: expected a JSON object: {error}") from error
    if not isinstance(values, dict):
        raise DatasetError(f"{path}: metadata: expected a JSON object, got {type(values).__name__}")
    return {str(key): str(value) for key, value in values.items()}


def read_npz(path: Path, claims: Claims) -> Iterator[RawEpisode]:
    """Yield the episodes of a `.npz` file.

    Raises:
        DatasetError: the file is damaged, an array is missing, does not fit the environment, or the lengths disagree.
    """

    def admit(name: str, header: NpyHeader) -> None:
        claims.admit(name, header.shape, header.dtype)

    observations, actions, rewards, stored, terminated, truncated = _read_members(path, claims.source, _ARRAYS, admit)
    lengths = _checked_lengths(stored, claims.source)
    steps, count = sum(lengths), len(lengths)
    for name, array, expected in (
        ("observations", observations, (steps + count, *observations.shape[1:])),
        ("actions", actions, (steps, *actions.shape[1:])),
        ("rewards", rewards, (steps,)),
        ("terminated", terminated, (count,)),
        ("truncated", truncated, (count,)),
    ):
        if array.shape != expected:
            raise DatasetError(
                f"{claims.source}: {name}: expected shape {expected} for {count} episodes of {steps} steps, "
                f"got {array.shape}"
            )
    first = 0
    for index, length in enumerate(lengths):
        kept = slice(first, first + length)
        # Every episode before this one holds an observation more than it has steps.
        watched = slice(first + index, first + index + length + 1)
        ends = bool(terminated[index]), bool(truncated[index])
        yield RawEpisode(observations[watched], actions[kept], rewards[kept], *ends)
        first += length


def _checked_lengths(stored: AnyArray, source: str) -> list[int]:
    if stored.ndim != 1 or stored.dtype.kind not in "iu":
        raise DatasetError(f"{source}: episode_lengths: expected integers (E,), got {stored.dtype} {stored.shape}")
    lengths = [int(length) for length in stored.tolist()]
    for index, length in enumerate(lengths):
        if length < 1:
            raise DatasetError(f"{source}, episode {index}: expected at least one step, got {length}")
    return lengths


def _admit_metadata(name: str, header: NpyHeader) -> None:
    if header.dtype.kind != "U" or header.shape or header.dtype.itemsize > _MAX_METADATA_BYTES:
        raise ValueError(f"{name}: expected one text of at most {_MAX_METADATA_BYTES} bytes, got {header}")


def _write_members(path: Path, arrays: Mapping[str, AnyArray]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=_FIXED_TIME)  # np.savez would write the time of day
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _read_members(
    path: Path, source: str, names: Sequence[str], admit: Callable[[str, NpyHeader], None]
) -> list[AnyArray]:
    try:
        with zipfile.ZipFile(path) as archive:
            present = set(archive.namelist())
            missing = [name for name in names if f"{name}.npy" not in present]
            if missing:
                raise DatasetError(f"{source}: expected arrays {', '.join(names)}, missing {', '.join(missing)}")
            return [_read_array(archive, name, admit) for name in names]
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # zipfile and zlib raise a dozen types for damaged bytes
        raise DatasetError(f"{source} is a damaged .npz file: {type(error).__name__}: {error}") from error


def _read_array(archive: zipfile.ZipFile, name: str, admit: Callable[[str, NpyHeader], None]) -> AnyArray:
    """Read one array; `numpy.load` would allocate whatever the header claims before it looks at the data."""
    with archive.open(f"{name}.npy") as file:
        header = read_npy_header(file)
        admit(name, header)
        claimed = math.prod(header.shape) * header.dtype.itemsize
        data = file.read(claimed)
    if len(data) != claimed:
        raise ValueError(f"{name}: expected {claimed} bytes, got {len(data)}")
    return np.frombuffer(data, dtype=header.dtype).reshape(header.shape, order="F" if header.is_fortran else "C")
