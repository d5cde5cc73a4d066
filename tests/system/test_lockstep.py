"""Lock-step: the same run twice, and a run that was killed and resumed, end in the same policy to the last bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.system.conftest import Start
from tests.system.forgetful_redis import ForgetfulRedis, messages_sent_again
from tests.system.launching import SMALL_PEN, Launched, kill, role_pids

pytestmark = pytest.mark.system

BUDGET = 3_700  # ends in the middle of an episode
A_TURN = 400  # an episode of each of two actors
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

    redis = ForgetfulRedis(tmp_path)
    forgets = ("--replay.server-path", str(redis.program), "--actor.resend-window-s", "60")
    bumpy = start(*OPTIONS, *forgets, run_dir=tmp_path / "bumpy")
    bumpy.wait_until(lambda state: state.env_steps >= 900)
    kill(role_pids(bumpy.run_dir, "actors actor")[-1])
    bumpy.wait_until(lambda state: state.env_steps >= 1_500)
    kill(role_pids(bumpy.run_dir, "learner")[0])
    redis.forget(30_000)  # a message of 70 steps and a part of the one before it
    server = bumpy.processes()["redis"]
    # Within a turn the last that Redis has written are its messages; so it is killed at once.
    bumpy.wait_until(lambda state: state.env_steps >= 2_200 and state.env_steps % A_TURN > 0)
    kill(server.pid)
    bumpy.wait_until(lambda state: state.env_steps >= 3_000)
    assert redis.has_forgotten
    assert messages_sent_again(bumpy.run_dir) > 0
    bumpy.process.send_signal(signal.SIGINT)
    assert bumpy.wait() == 0, bumpy.output + bumpy.logs()
    resumed = finished(start("--restart-behavior", "resume", run_dir=bumpy.run_dir))
    assert resumed == straight

    other_seed = (*SMALL_PEN, "--lockstep", "--seed", "4", "--num-env-steps", str(BUDGET), "--rollout-length", "70")
    assert finished(start(*other_seed, run_dir=tmp_path / "other")) != straight
