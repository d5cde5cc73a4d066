"""TensorBoard event files, once for each x axis: TensorBoard itself offers only one beside the wall time.

tensorboard/by_env_steps    every point that has env steps behind it, and every evaluation
tensorboard/by_grad_steps   every point
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from replay_service.points import Point

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_FLUSH_S = 10


class EventFiles:
    """Writes points into event files; later sessions of a run add files of their own."""

    def __init__(self, folder: Path) -> None:
        self._by_env_steps = _open(folder / "by_env_steps")
        self._by_grad_steps = _open(folder / "by_grad_steps")

    def write(self, point: Point) -> None:
        """Add a point to both axes."""
        for name, value in point.values.items():
            self._by_grad_steps.add_scalar(name, value, point.grad_steps, walltime=point.unix_seconds)
            # Pretraining has no env steps: all its points would lie on each other at 0.
            if point.env_steps > 0 or name.startswith("eval/"):
                self._by_env_steps.add_scalar(name, value, point.env_steps, walltime=point.unix_seconds)

    def close(self) -> None:
        """Flush."""
        self._by_env_steps.close()
        self._by_grad_steps.close()


def _open(folder: Path) -> SummaryWriter:
    # tensorboardX imports torch wherever it is installed and does not need it here: two seconds and 180 MB saved.
    is_hidden = "torch" not in sys.modules
    if is_hidden:
        sys.modules["torch"] = None  # type: ignore[assignment] # makes `import torch` an ImportError
    try:
        from tensorboardX import SummaryWriter
    finally:
        if is_hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), flush_secs=_FLUSH_S)
