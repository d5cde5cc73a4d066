"""What a file's headers claim to hold, checked before any memory is taken for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from replay_service.errors import DatasetError
from replay_service.experience import ExperienceSpec

MAX_BYTES = 16 * 2**30
"""Most that is read of all sources of a dataset together, counted in the stored type and at least as float32."""

MAX_EXPANSION = 5_000
"""Most bytes that one byte of a file can stand for: deflate reaches 1032, and a byte may become a float32."""

_SMALLEST_FILE_BYTES = 2**16
_FLOAT32_BYTES = 4


class Claims:
    """Admits the arrays of one source one by one, as long as they fit the environment and the limit."""

    def __init__(self, source: str, path: Path, spec: ExperienceSpec | None, *, bytes_left: int = MAX_BYTES) -> None:
        self.source = source
        """What the user named; every message begins with it."""
        self.claimed_bytes = 0
        """Sum over the arrays admitted so far."""
        self.limit_bytes = min(bytes_left, MAX_EXPANSION * max(path.stat().st_size, _SMALLEST_FILE_BYTES))
        self._env = "" if spec is None else spec.env
        # Without a spec (to look at a dataset of an unknown environment) any width is admitted.
        self._widths = {} if spec is None else {"observations": spec.observation_dim, "actions": spec.action_dim}

    def place(self, episode: int | None = None) -> str:
        """The source, and the episode where there is one, as messages name them."""
        return self.source if episode is None else f"{self.source}, episode {episode}"

    def admit(
        self, name: str, shape: Sequence[int], dtype: np.dtype[np.generic], *, episode: int | None = None
    ) -> None:
        """Agree to read an array of this shape, or refuse.

        Args:
            name: of the array; `observations` must be (rows, O) and `actions` (rows, A).
            shape: as the header says.
            dtype: as the header says.
            episode: index of the episode, for a format that stores each apart.

        Raises:
            DatasetError: the array holds no numbers, belongs to another environment, or is too large.
        """
        where = self.place(episode)
        if dtype.kind not in "fiub":
            raise DatasetError(f"{where}: {name}: expected numbers, got {dtype}")
        width = self._widths.get(name)
        if width is not None and (len(shape) != 2 or shape[1] != width):
            raise DatasetError(
                f"{where}: {name}: environment {self._env} has {width} values a step, got an array of shape "
                f"{tuple(shape)}: is it a dataset of another environment?"
            )
        if name in ("observations", "actions") and not shape:
            raise DatasetError(f"{where}: {name}: expected a row a step, got a single number")
        claimed = math.prod(shape) * max(dtype.itemsize, _FLOAT32_BYTES)
        left = self.limit_bytes - self.claimed_bytes
        if claimed > left:
            raise DatasetError(
                f"{where}: {name} of shape {tuple(shape)} claims {claimed} bytes, {left} are left of the limit: "
                f"{MAX_BYTES} for a dataset, {MAX_EXPANSION} times its size for a file"
            )
        self.claimed_bytes += claimed
