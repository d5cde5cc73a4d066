"""hand_dapg demonstrations (`door-v0_demos.pickle`) and the AWAC authors' `.npy` files, read without running them.

Both formats hold a list of paths, each a dictionary with `observations`, `actions` and `rewards`; the final
observation is not stored, so the last step of each path is dropped. An observation may itself be a dictionary with the
key `state_observation`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from replay_service.datasets.array_unpickler import PickledArray, RefusedGlobal, unpickle_arrays
from replay_service.datasets.claims import Claims
from replay_service.datasets.episode import AnyArray, RawEpisode
from replay_service.datasets.npy_header import read_npy_header
from replay_service.errors import DatasetError

NPY_MAGIC = b"\x93NUMPY"
_OBSERVATION_KEY = "state_observation"
_FLOAT64: np.dtype[np.generic] = np.dtype(np.float64)


def read_pickle(path: Path, claims: Claims) -> Iterator[RawEpisode]:
    """Yield the episodes of a DAPG pickle or of an object-array `.npy` file.

    Raises:
        DatasetError: the file holds anything but lists, dictionaries and NumPy arrays, is damaged, or lacks an array.
    """
    size = path.stat().st_size
    if size > claims.limit_bytes:
        raise DatasetError(f"{claims.source}: expected a pickle of at most {claims.limit_bytes} bytes, got {size}")
    data = path.read_bytes()
    if data.startswith(NPY_MAGIC):
        data = _object_array_body(data, claims.source)
    try:
        loaded = unpickle_arrays(data)
    except RefusedGlobal as error:
        raise DatasetError(
            f"{claims.source}: refused to load {error} from a pickle: only NumPy arrays are admitted, because a pickle "
            "can run any program"
        ) from error
    except Exception as error:  # a hostile or truncated pickle raises anything at all
        raise DatasetError(f"{claims.source} is not a readable pickle: {type(error).__name__}: {error}") from error
    paths = _contents(loaded)
    if not isinstance(paths, list) or not all(isinstance(item, dict) for item in paths):
        raise DatasetError(f"{claims.source}: expected a list of dictionaries, one a path, got {_form(loaded)}")
    for index, item in enumerate(paths):
        yield _episode(item, claims, index)


def _object_array_body(data: bytes, source: str) -> bytes:
    stream = io.BytesIO(data)
    try:
        header = read_npy_header(stream)
    except ValueError as error:
        raise DatasetError(f"{source} is a damaged .npy file: {error}") from error
    if header.dtype != np.dtype(object):
        raise DatasetError(f"{source}: expected an object array of paths, got {header.dtype}")
    return stream.read()


def _episode(item: Mapping[object, object], claims: Claims, index: int) -> RawEpisode:
    for name in ("observations", "actions"):
        if name not in item:
            found = ", ".join(sorted(key for key in item if isinstance(key, str))[:8]) or "no names"
            raise DatasetError(f"{claims.place(index)}: expected an array {name!r}, got {found}")
    observations = _numbers(item["observations"], "observations", claims, index)
    actions = _numbers(item["actions"], "actions", claims, index)
    rewards = None
    if item.get("rewards") is not None:
        # Some of the authors' files hold one reward more than steps.
        rewards = _numbers(item["rewards"], "rewards", claims, index).reshape(-1)[: max(len(actions) - 1, 0)]
    return RawEpisode(observations, actions[:-1], rewards, terminated=False, truncated=False)


def _numbers(value: object, name: str, claims: Claims, index: int) -> AnyArray:
    """An array as it is, or one stacked from a list of rows."""
    contents = _contents(value)
    if isinstance(contents, np.ndarray):
        claims.admit(name, contents.shape, contents.dtype, episode=index)
        return contents
    if not isinstance(contents, list) or not contents:
        raise DatasetError(f"{claims.place(index)}: {name}: expected an array of numbers, got {_form(value)}")
    first = _row(contents[0], claims.place(index), name)
    claims.admit(name, (len(contents), *first.shape), _FLOAT64, episode=index)
    stacked = np.empty((len(contents), *first.shape))
    for number, content in enumerate(contents):
        row = _row(content, claims.place(index), name)
        if row.shape != first.shape:
            raise DatasetError(
                f"{claims.place(index)}: {name}: expected rows of shape {first.shape} as the first, "
                f"got {row.shape} in row {number}"
            )
        stacked[number] = row
    return stacked


def _row(value: object, where: str, name: str) -> AnyArray:
    """One row: an array, a number, a flat list of numbers, or a dictionary that holds one of them."""
    contents = _contents(value.get(_OBSERVATION_KEY) if isinstance(value, dict) else value)
    if isinstance(contents, np.ndarray) and contents.dtype.kind in "fiub":
        return contents
    if isinstance(contents, float | int) or _is_flat(contents):
        try:
            return np.asarray(contents, dtype=np.float64)
        except OverflowError as error:
            raise DatasetError(f"{where}: {name}: expected finite values, got an integer beyond float64") from error
    raise DatasetError(f"{where}: {name}: expected rows of numbers, got {_form(value)}")


def _is_flat(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, float | int) for item in value)


def _contents(value: object) -> object:
    return value.contents if isinstance(value, PickledArray) else value


def _form(value: object) -> str:
    """A word for what came instead."""
    if isinstance(value, PickledArray):
        return "an array of objects" if isinstance(value.contents, list) else "an array of another type"
    if isinstance(value, list) and not value:
        return "an empty list"
    if isinstance(value, dict) and _OBSERVATION_KEY not in value:
        return f"a dictionary without {_OBSERVATION_KEY!r}"
    return type(value).__name__
