"""Make a small demonstration dataset from expert data: clone, record with noise, judge.

Cloning needs torch and recording needs the environment, so each runs as its own process.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from launcher.role_command import run_module
from launcher.whole_file import require_writable
from replay_service.config import require_at_least, require_below_one, require_between

_JUDGED_EPISODES = 100
_JUDGE_SEED = 1_000_000
_LARGEST_NOISE = 2.0
"""As wide as the range of the actions."""


def make_demonstrations(
    *, env: str, source: str, output: Path, episodes: int, noise: tuple[float, float], lag: float, steps: int, seed: int
) -> int:
    """Clone an expert, record its noisy successes, and judge behaviour cloning on the record.

    Args:
        env: one of the three tasks.
        source: expert data.
        output: dataset to write.
        episodes: demonstrations to record.
        noise: standard deviation of the noise on the expert's mean action, and its correlation from step to step.
        lag: how much of the last action is in the next.
        steps: gradient steps of behaviour cloning.
        seed: of cloning and recording.

    Raises:
        ConfigError: a number is out of range, or the output cannot be written.
        StepRefused: the source does not fit the task.
        StepFailed: a process failed.
    """
    require_at_least("--episodes", episodes, 1)
    require_at_least("--steps", steps, 1)
    require_at_least("--seed", seed, 0)
    require_between("--noise-std", noise[0], 0.0, _LARGEST_NOISE)
    require_below_one("--noise-correlation", noise[1])
    require_below_one("--lag", lag)
    require_writable(output)
    with tempfile.TemporaryDirectory() as folder:
        expert, clone = Path(folder) / "expert.policy", Path(folder) / "clone.policy"
        run_module("learner.behaviour_cloning", "--env", env, "--dataset", source, "--steps", steps, "--seed", seed,
                "--output", expert)  # fmt: skip
        print(f"expert cloned from {source}: {_judge(env, expert)}")
        provenance = {"policy": f"behaviour cloning, {steps} steps, seed {seed}", "cloned_from": Path(source).name}
        recorded = run_module("actors.recording", "record", "--env", env, "--policy", expert, "--episodes", episodes,
                           "--noise-std", noise[0], "--noise-correlation", noise[1], "--lag", lag, "--seed", seed,
                           "--provenance", json.dumps(provenance),
                           "--output", output)  # fmt: skip
        print(f"recorded: {recorded}")
        run_module("learner.behaviour_cloning", "--env", env, "--dataset", output, "--steps", steps, "--seed", seed,
                "--output", clone)  # fmt: skip
        print(f"behaviour cloning on the record reaches: {_judge(env, clone)}")
    return 0


def _judge(env: str, policy: Path) -> str:
    return run_module("actors.recording", "evaluate", "--env", env, "--policy", policy, "--episodes", _JUDGED_EPISODES,
                   "--seed", _JUDGE_SEED)  # fmt: skip
