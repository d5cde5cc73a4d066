"""`launcher dataset rollout`: from demonstrations to a dataset of cloned policies that a run takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from replay_service.datasets import load_dataset
from replay_service.demonstrations import shipped_path
from replay_service.experience import ExperienceSpec

pytestmark = pytest.mark.system


def rollout(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", "dataset", "rollout", "--env", "pen", *words],
        cwd=folder, capture_output=True, text=True, timeout=110,
    )  # fmt: skip


def test_clones_play_and_their_episodes_are_a_dataset(tmp_path: Path) -> None:
    small = ("--policies", "2", "--bc-steps", "5", "--episodes", "4")
    done = rollout(tmp_path, "--source", str(shipped_path("pen")), "--output", "pen-bc-v0", *small)
    assert done.returncode == 0, done.stderr
    assert "4 episodes, 800 steps" in done.stdout
    loaded = load_dataset([str(tmp_path / "pen-bc-v0")], spec=ExperienceSpec("pen", 45, 24, 200))
    assert (loaded.num_episodes, loaded.num_steps) == (4, 800)
    metadata = json.loads((tmp_path / "pen-bc-v0" / "data" / "metadata.json").read_text())
    provenance = json.loads(metadata["provenance"])
    assert provenance["policies"] == "2 by behaviour cloning, 5 steps of 128, seeds from 0"
    assert provenance["cloned_from"] == [Path(str(shipped_path("pen"))).name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--source", "nowhere.npz", "--output", "pen-bc-v0"), "nowhere.npz"),
        (("--source", "nowhere.npz", "--output", "pen-bc"), "ends in a version"),
        (("--source", "nowhere.npz", "--output", "pen-bc-v0", "--episodes", "3"), "--episodes"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = rollout(tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
