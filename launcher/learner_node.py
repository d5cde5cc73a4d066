"""Which node has the learner's checkpoints: a learner that is resumed elsewhere would find none, and refuse."""

from __future__ import annotations

import contextlib

from launcher.run_directory import RunDirectory


class LearnerNode:
    """Notes where the learner runs, in the run directory, when it is a node that does not share this directory."""

    def __init__(self, directory: RunDirectory) -> None:
        self._path = directory.path / "learner-node"
        self._checkpoints = directory.checkpoints

    def note(self, address: str, *, shares_directory: bool) -> None:
        """Remember a learner's node; one that writes its checkpoints here needs no note."""
        if shares_directory:
            self._path.unlink(missing_ok=True)
            return
        partial = self._path.with_suffix(".partial")
        partial.write_text(address, encoding="utf-8")
        partial.replace(self._path)

    def read(self) -> str:
        """The node that was noted, or ''. Checkpoints that came here after it was noted make the note void."""
        with contextlib.suppress(OSError):
            # By the time of change, which a copy that keeps times does not carry over.
            noted = self._path.stat().st_ctime_ns
            if all(found.stat().st_ctime_ns < noted for found in self._checkpoints.glob("step-*")):
                return self._path.read_text(encoding="utf-8")
        return ""

    @property
    def has_checkpoints_here(self) -> bool:
        """Whether the launcher's own run directory has any."""
        return any(self._checkpoints.glob("step-*"))
