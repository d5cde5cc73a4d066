"""hand_dapg demonstrations (`door-v0_demos.pickle`) and the AWAC authors' `.npy` files, read without running them.

A pickle is a program; this reader lets it do nothing but rebuild NumPy arrays. Both formats hold a list of paths,
each a dictionary with `observations`, `actions` and `rewards`; the final observation is not stored, so the last step
of each path is dropped.
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251 - only subclassed below, with every other global refused
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from replay_service.datasets.episode import AnyArray, RawEpisode
from replay_service.errors import DatasetError

NPY_MAGIC = b"\x93NUMPY"
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_SCALAR = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}
_OBSERVATION_KEY = "state_observation"


class _Refused(Exception):
    pass


def _reconstruct(kind: object, _shape: object, _dtype: object) -> AnyArray:
    """Make the empty array that a pickle then fills; a subclass or a shape of the pickle's choosing is refused."""
    if kind is not np.ndarray:
        raise _Refused(f"array type {kind!r}")
    return np.ndarray((0,), np.dtype("b"))


def _scalar(dtype: object, data: object = b"") -> Any:
    """Rebuild one number from its bytes."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub" or not isinstance(data, bytes | str):
        raise _Refused("a NumPy scalar that is not a number")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype=dtype, count=1)[0]


def _encode(text: object, encoding: object) -> bytes:
    """Protocol-2 pickles store bytes as latin-1 text and encode it on loading."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("_codecs.encode with unexpected arguments")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECONSTRUCT:
            return _reconstruct
        if (module, name) in _SCALAR:
            return _scalar
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise _Refused(f"{module}.{name}")


def read_pickle(path: Path) -> Iterator[RawEpisode]:
    """Yield the episodes of a DAPG pickle or of an object-array `.npy` file.

    Raises:
        DatasetError: the file holds anything but lists, dictionaries and NumPy arrays, or is damaged.
    """
    data = path.read_bytes()
    if data.startswith(NPY_MAGIC):
        data = _object_array_body(data, path)
    try:
        loaded = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except _Refused as error:
        raise DatasetError(
            f"{path}: refused to load {error} from a pickle: only NumPy arrays are admitted, because a pickle can run "
            "any program"
        ) from error
    except Exception as error:  # a hostile or truncated pickle raises anything at all
        raise DatasetError(f"{path} is not a readable pickle: {type(error).__name__}: {error}") from error
    paths = loaded.tolist() if isinstance(loaded, np.ndarray) else loaded
    if not isinstance(paths, list) or not all(isinstance(item, dict) for item in paths):
        raise DatasetError(f"{path}: expected a list of dictionaries, one a path, got {type(paths).__name__}")
    for index, item in enumerate(paths):
        yield _episode(item, f"{path}: path {index}")


def _object_array_body(data: bytes, path: Path) -> bytes:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _shape, _order, dtype = read_header(stream)
    except ValueError as error:
        raise DatasetError(f"{path} is a damaged .npy file: {error}") from error
    if dtype != np.dtype(object):
        raise DatasetError(f"{path}: expected an object array of paths, got {dtype}")
    return stream.read()


def _episode(item: dict[Any, Any], where: str) -> RawEpisode:
    observations = item.get("observations")
    if isinstance(observations, list | np.ndarray) and len(observations) and isinstance(observations[0], dict):
        observations = [row.get(_OBSERVATION_KEY) for row in observations]
    arrays: dict[str, AnyArray] = {}
    for name, value in (("observations", observations), ("actions", item.get("actions"))):
        try:
            arrays[name] = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{where}: {name}: expected an array of numbers, got {type(value).__name__}") from error
    rewards = item.get("rewards")
    steps = len(arrays["actions"]) - 1 if arrays["actions"].ndim else 0
    stored = None if rewards is None else np.asarray(rewards, dtype=np.float64).reshape(-1)[: max(steps, 0)]
    return RawEpisode(arrays["observations"], arrays["actions"][:-1] if steps > 0 else arrays["actions"][:0],
                      stored, False, False)  # fmt: skip
