"""`launcher dataset rollout`: from demonstrations to a dataset of cloned policies that a run takes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replay_service.datasets import load_dataset
from replay_service.demonstrations import shipped_path
from replay_service.experience import ExperienceSpec
from tests.conftest import WaitUntil
from tests.system.launching import launcher, launcher_command

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

ROLLOUT = ("dataset", "rollout", "--env", "pen")


def test_clones_play_and_their_episodes_are_a_dataset(tmp_path: Path) -> None:
    small = ("--policies", "2", "--bc-steps", "5", "--episodes", "4")
    done = launcher(*ROLLOUT, "--source", shipped_path("pen"), "--output", "pen-bc-v0", *small, cwd=tmp_path)
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
    assert message in launcher(*ROLLOUT, *words, cwd=tmp_path, code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_is_refused_once_and_not_by_each_process(tmp_path: Path) -> None:
    words = ("dataset", "rollout", "--env", "penn", "--source", "nowhere.npz", "--output", "penn-bc-v0")
    told = launcher(*words, cwd=tmp_path, code=2).stderr
    assert told == "error: --env: expected one of pen, door, relocate, got 'penn'\n"
    assert list(tmp_path.iterdir()) == []


def python(*words: object, cwd: Path) -> None:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


def test_policies_cloned_beside_each_other_are_those_cloned_one_after_the_other(tmp_path: Path) -> None:
    source = shipped_path("pen")
    sizes = ("--policies", 3, "--bc-steps", 20, "--episodes", 3, "--seed", 7)
    done = launcher(*ROLLOUT, "--source", source, "--output", "together-v0", *sizes, cwd=tmp_path)
    assert done.stdout.splitlines()[:3] == [f"cloned policy {number} of 3" for number in (1, 2, 3)]
    policies: list[str] = []
    for seed in (7, 8, 9):
        python("-m", "learner.behaviour_cloning", "--env", "pen", "--dataset", source, "--steps", 20, "--batch-size",
               128, "--seed", seed, "--output", f"{seed}.policy", cwd=tmp_path)  # fmt: skip
        policies += ["--policy", f"{seed}.policy"]
    python("-m", "actors.recording", "rollout", "--env", "pen", *policies, "--episodes", 3, "--seed", 7, "--output",
           "alone-v0", cwd=tmp_path)  # fmt: skip
    together, alone = (tmp_path / name / "data" / "main_data.hdf5" for name in ("together-v0", "alone-v0"))
    assert together.read_bytes() == alone.read_bytes()


def children(pid: int) -> dict[int, str]:
    """Processes that a process has started: id -> the module that each runs, '' while it is none yet."""
    found, started = {}, []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended since
            started += path.read_text().split()
    for child in map(int, started):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            found[child] = words[2] if len(words) > 2 else ""
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_ends_leaves_no_process_and_where_it_can_no_file(
    number: signal.Signals, tmp_path: Path, wait_until: WaitUntil
) -> None:
    (tmp_path / "temporary").mkdir()
    words = ("--source", shipped_path("pen"), "--output", "pen-bc-v0", "--bc-steps", 100_000_000)
    running = subprocess.Popen(
        launcher_command(*ROLLOUT, *words), cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    cores = min(10, len(os.sched_getaffinity(0)))
    try:
        wait_until(
            lambda: list(children(running.pid).values()).count("learner.behaviour_cloning") == cores,
            "as many policies to be cloned as there are cores",
        )
        started = children(running.pid)
        running.send_signal(number)
        _out, err = running.communicate(timeout=120)
    finally:
        running.kill()
        running.wait()
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in started), "the kernel to end them")
        return
    assert running.returncode == 128 + signal.SIGTERM, err
    assert [child for child in started if Path(f"/proc/{child}").exists()] == []
    assert list(tmp_path.rglob("*")) == [tmp_path / "temporary"]
