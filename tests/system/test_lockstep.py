"""Lock-step: the same run twice, and a run that was killed and resumed, end in the same policy to the last bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.system.conftest import Start
from tests.system.launching import SMALL_PEN, Launched, kill, role_pids

pytestmark = pytest.mark.system

BUDGET = 3_700  # ends in the middle of an episode
OPTIONS = (*SMALL_PEN, "--lockstep", "--seed", "3", "--num-env-steps", str(BUDGET), "--rollout-length", "70")


def hashes(run_dir: Path) -> dict[str, str]:
    """Of every tensor of the last checkpoint: networks, optimizers, generator."""
    manifest = json.loads((sorted(run_dir.glob("checkpoints/step-*"))[-1] / "manifest.json").read_text())
    assert manifest["progress"]["env_steps"] == BUDGET
    found: dict[str, str] = manifest["sha256"]
    return found


def finished(launched: Launched) -> dict[str, str]:
    assert launched.wait() == 0, launched.output + launched.logs()
    assert launched.summary()["unaccounted_steps"] == 0
    return hashes(launched.run_dir)


@pytest.mark.timeout(900)
def test_runs_are_bit_identical_also_when_killed_and_resumed(start: Start, tmp_path: Path) -> None:
    straight = finished(start(*OPTIONS, run_dir=tmp_path / "straight"))

    bumpy = start(*OPTIONS, run_dir=tmp_path / "bumpy")
    bumpy.wait_until(lambda state: state.env_steps >= 900)
    kill(role_pids(bumpy.run_dir, "actors actor")[-1])
    bumpy.wait_until(lambda state: state.env_steps >= 1_500)
    kill(role_pids(bumpy.run_dir, "learner")[0])
    bumpy.wait_until(lambda state: state.env_steps >= 2_200)
    bumpy.process.send_signal(signal.SIGINT)
    assert bumpy.wait() == 0, bumpy.output + bumpy.logs()
    resumed = finished(start("--restart-behavior", "resume", run_dir=bumpy.run_dir))
    assert resumed == straight

    other_seed = (*SMALL_PEN, "--lockstep", "--seed", "4", "--num-env-steps", str(BUDGET), "--rollout-length", "70")
    assert finished(start(*other_seed, run_dir=tmp_path / "other")) != straight
