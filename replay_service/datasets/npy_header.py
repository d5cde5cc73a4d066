"""The header of a `.npy` file or of a member of a `.npz`: what follows it, and in which order."""

from __future__ import annotations

from typing import IO, NamedTuple

import numpy as np


class NpyHeader(NamedTuple):
    """What the header claims; nothing has been read behind it."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[np.generic]


def read_npy_header(file: IO[bytes]) -> NpyHeader:
    """Read the header and leave the file at the first byte of the data.

    Raises:
        ValueError: it is damaged.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header = NpyHeader(*read(file))
    except Exception as error:  # NumPy parses it as Python source, and fails in as many ways
        raise ValueError(f"damaged header: {error}") from error
    if any(length < 0 for length in header.shape):
        raise ValueError(f"damaged header: negative shape {header.shape}")
    return header
