"""Where the learner's checkpoints are, remembered for the next start."""

from __future__ import annotations

import os
import time
from pathlib import Path

from launcher.learner_node import LearnerNode, NotedNode
from launcher.run_directory import RunDirectory

NODE = NotedNode("10.0.0.2", 0.5)


def test_a_node_is_remembered_until_it_is_forgotten(tmp_path: Path) -> None:
    noted = LearnerNode(RunDirectory(tmp_path))
    assert noted.read() is None
    noted.note(NODE)
    assert LearnerNode(RunDirectory(tmp_path)).read() == NODE
    noted.forget()
    assert noted.read() is None
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_were_copied_here_make_the_note_void_and_older_ones_do_not(tmp_path: Path) -> None:
    noted = LearnerNode(RunDirectory(tmp_path))
    copied = tmp_path / "checkpoints" / "step-000000000100"
    copied.mkdir(parents=True)
    time.sleep(0.02)  # file systems count in steps of a few milliseconds
    noted.note(NODE)
    assert noted.read() == NODE
    time.sleep(0.02)
    os.utime(copied, (0, 0))  # as `cp -p` brings an old time with it
    assert noted.read() is None
    assert noted.has_checkpoints_here
