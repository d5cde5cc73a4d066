"""Which node has the learner's checkpoints: a learner that is resumed elsewhere would find none, and refuse."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from launcher.run_directory import RunDirectory


@dataclass(frozen=True, slots=True)
class NotedNode:
    """Where a learner ran that did not write its checkpoints here."""

    address: str
    num_gpus: float
    """What it had reserved there."""


class LearnerNode:
    """Notes where the learner runs, in the run directory, when it is a node that does not share this directory."""

    def __init__(self, directory: RunDirectory) -> None:
        self._path = directory.path / "learner-node"
        self._checkpoints = directory.checkpoints

    def note(self, node: NotedNode) -> None:
        """Remember the node whose disk the learner writes to."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(f"{node.address} {node.num_gpus:g}\n", encoding="utf-8")
        partial.replace(self._path)

    def forget(self) -> None:
        """The learner writes its checkpoints here again."""
        self._path.unlink(missing_ok=True)

    def read(self) -> NotedNode | None:
        """The node that was noted. Checkpoints that came here after it was noted make the note void."""
        with contextlib.suppress(OSError, ValueError):
            # By the time of change, which a copy that keeps times does not carry over.
            noted = self._path.stat().st_ctime_ns
            if all(found.stat().st_ctime_ns < noted for found in checkpoints_in(self._checkpoints)):
                address, num_gpus = self._path.read_text(encoding="utf-8").split()
                return NotedNode(address, float(num_gpus))
        return None

    @property
    def has_checkpoints_here(self) -> bool:
        """Whether the launcher's own run directory has any."""
        return bool(checkpoints_in(self._checkpoints))


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder of checkpoints."""
    return list(folder.glob("step-*"))
