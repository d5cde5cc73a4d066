"""A reader of pickles that can do nothing but hand out plain numbers, lists, dictionaries and NumPy arrays.

A pickle is a program. This one gets none of NumPy's own constructors to call: `numpy.ndarray(shape)` takes any amount
of memory, and a forged dtype makes NumPy read the data as pointers. It builds inert stand-ins, which check what they
are given and make an array of numbers from bytes that are really there. What the unpickler itself would take on a
claim alone is looked for before it runs, and texts may be turned into bytes about as often as the file has bytes.
"""

from __future__ import annotations

import io
import math
import pickle  # noqa: TID251 - only subclassed below, with every other global refused
import pickletools
import re
from collections.abc import Callable

import numpy as np

from replay_service.datasets.episode import AnyArray

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMBER_CODE = re.compile(r"[biuf]\d{1,2}\Z")
_BYTE_ORDERS = ("<", ">", "|", "=")
_SPARE_BYTES = 2**16


class RefusedGlobal(Exception):
    """The pickle names something that is not needed to rebuild an array of numbers; the text is its name."""


class _Budget:
    """Bytes that may still be made of texts: a text that is stored once can be encoded any number of times."""

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("more bytes than the file could hold")


class PickledArray:
    """Stands for an array: what it holds is in `contents`."""

    __slots__ = ("contents",)

    def __init__(self) -> None:
        self.contents: AnyArray | list[object] | None = None
        """Numbers, read-only; the items of an object array (N,); or None for text and any other type or shape."""

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _PickledType() as kind, is_fortran, list() as items) if kind.is_object:
                self.contents = items if shape == (len(items),) else None
            case (int(), tuple() as shape, _PickledType() as kind, is_fortran, bytes() | str() as data):
                self.contents = kind.array(_lengths(shape), data, is_fortran=bool(is_fortran))
            case _:
                raise ValueError("an array with a state of an unknown form")


class _PickledType:
    """Stands for a dtype: its code and byte order, and nothing else of its state."""

    __slots__ = ("_budget", "_code", "_order")

    def __init__(self, code: object, budget: _Budget) -> None:
        if not isinstance(code, str):
            raise RefusedGlobal(f"numpy.dtype of {type(code).__name__}")
        self._code = code
        self._order = "="
        self._budget = budget

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), str() as order, *_) if order in _BYTE_ORDERS:
                self._order = order
            case _:
                raise ValueError("a dtype with a state of an unknown form")

    @property
    def is_object(self) -> bool:
        return self._code.startswith("O")

    def array(self, shape: tuple[int, ...], data: bytes | str, *, is_fortran: bool) -> AnyArray | None:
        if not _NUMBER_CODE.match(self._code):
            return None
        dtype: np.dtype[np.generic] = np.dtype(self._order + self._code)
        raw = _encode(data, "latin1", self._budget) if isinstance(data, str) else data
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise ValueError(f"an array of shape {shape} {dtype} with {len(raw)} bytes")
        return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if is_fortran else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """Knows five names. Each look-up makes a new function, for a pickle may set attributes of what it is given."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")  # the encoding of NumPy arrays in Python 2 pickles
        self._array_type = object()
        self._budget = _Budget(2 * len(data) + _SPARE_BYTES)

    def find_class(self, module: str, name: str) -> object:
        if name == "_reconstruct" and module in _MULTIARRAY:
            return self._reconstruct_function()
        if name == "scalar" and module in _MULTIARRAY:
            return lambda kind, data="": _number(kind, data)
        if (module, name) == ("numpy", "ndarray"):
            return self._array_type
        if (module, name) == ("numpy", "dtype"):
            return lambda code, _align=False, _copy=False: _PickledType(code, self._budget)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: _encode(text, encoding, self._budget)
        raise RefusedGlobal(f"{module}.{name}")

    def _reconstruct_function(self) -> Callable[[object, object, object], PickledArray]:
        def reconstruct(kind: object, _shape: object, _dtype: object) -> PickledArray:
            if kind is not self._array_type:
                raise RefusedGlobal("an array type other than numpy.ndarray")
            return PickledArray()

        return reconstruct


def unpickle_arrays(data: bytes) -> object:
    """Load a pickle; its arrays come as `PickledArray`.

    Raises:
        RefusedGlobal: it names anything but what rebuilds an array.
        Exception: of any other type when it is damaged.
    """
    _refuse_claims(data)
    return _ArrayUnpickler(data).load()


def _refuse_claims(data: bytes) -> None:
    """Refuse a program for which the unpickler would take memory that the file's size does not warrant.

    It makes a memo as long as the highest index, and a bytearray as long as it is said to be, before it looks further.

    Raises:
        ValueError: names the operation, or says that an argument is cut short.
    """
    for number, (operation, argument, position) in enumerate(pickletools.genops(data)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > 2 * number + 64:
            raise ValueError(f"memo index {argument} at byte {position}, after {number} operations")
        if operation.name == "BYTEARRAY8":
            raise ValueError(f"a bytearray at byte {position}: no dataset holds one")


def _lengths(shape: tuple[object, ...]) -> tuple[int, ...]:
    lengths = tuple(length for length in shape if isinstance(length, int) and length >= 0)
    if len(lengths) != len(shape):
        raise ValueError("an array with a shape of an unknown form")
    return lengths


def _number(kind: object, data: object) -> object:
    """Rebuild one number from its bytes; None for a scalar of another type."""
    if not isinstance(kind, _PickledType) or not isinstance(data, bytes | str):
        raise ValueError("a scalar of an unknown form")
    array = kind.array((), data, is_fortran=False)
    return None if array is None else array.item()


def _encode(text: object, encoding: object, budget: _Budget) -> bytes:
    """Rebuild bytes: protocol-2 pickles store them as latin-1 text and encode it on loading."""
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedGlobal("_codecs.encode to anything but latin1")
    budget.spend(len(text))
    return text.encode("latin1")
