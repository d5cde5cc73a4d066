"""Where the learner's checkpoints are, remembered for the next start."""

from __future__ import annotations

import os
import time
from pathlib import Path

from launcher.learner_node import LearnerNode
from launcher.run_directory import RunDirectory


def test_a_node_with_a_disk_of_its_own_is_remembered_and_one_that_shares_ours_is_not(tmp_path: Path) -> None:
    noted = LearnerNode(RunDirectory(tmp_path))
    assert noted.read() == ""
    noted.note("10.0.0.2", shares_directory=False)
    assert LearnerNode(RunDirectory(tmp_path)).read() == "10.0.0.2"
    noted.note("10.0.0.1", shares_directory=True)
    assert noted.read() == ""
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_were_copied_here_make_the_note_void_and_older_ones_do_not(tmp_path: Path) -> None:
    noted = LearnerNode(RunDirectory(tmp_path))
    copied = tmp_path / "checkpoints" / "step-000000000100"
    copied.mkdir(parents=True)
    time.sleep(0.02)  # file systems count in steps of a few milliseconds
    noted.note("10.0.0.2", shares_directory=False)
    assert noted.read() == "10.0.0.2"
    time.sleep(0.02)
    os.utime(copied, (0, 0))  # as `cp -p` brings an old time with it
    assert noted.read() == ""
    assert noted.has_checkpoints_here
