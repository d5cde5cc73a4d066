"""The authors' second dataset: rollouts of policies cloned from the demonstrations, good and bad ones alike.

rlkit's `hand/sparse/bc_*.py` trained ten seeds of behaviour cloning (4x256, batch 128) and dumped five times 1,000
exploring and 1,000 deterministic steps of each: 100,000 transitions, half of them noise-free.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from launcher.role_command import run_module, run_modules
from launcher.whole_file import require_writable_beside
from replay_service.config import require_at_least
from replay_service.datasets import check_minari_name, load_dataset
from replay_service.errors import ConfigError
from replay_service.experience import ExperienceSpec
from replay_service.process import available_cores
from replay_service.tasks import TASKS, find_task

_BATCH_SIZE = 128


def make_cloned_rollouts(
    *, env: str, sources: Sequence[str], output: Path, policies: int, steps: int, episodes: int, seed: int
) -> int:
    """Clone policies from a dataset and record their episodes, every second round with the mean action.

    As many policies are cloned at a time as there are cores; each depends on its own seed alone.

    Args:
        env: one of the three tasks.
        sources: demonstrations.
        output: Minari directory to write.
        policies: seeds of behaviour cloning.
        steps: gradient steps of each.
        episodes: of all policies together.
        seed: of the first policy, and of the rollouts.

    Raises:
        ConfigError: a number is out of range, there is no such task, or the output cannot be written.
        DatasetError: the output's name is unfit or in use, or a source does not fit the task.
        StepRefused: the output found no room; the process's own words are on stderr.
        StepFailed: a process failed.
    """
    require_at_least("--policies", policies, 1)
    require_at_least("--bc-steps", steps, 1)
    require_at_least("--episodes", episodes, policies)
    require_at_least("--seed", seed, 0)
    check_minari_name(output)
    require_writable_beside(output)
    _check_sources(env, sources)
    datasets = [word for source in sources for word in ("--dataset", source)]
    with tempfile.TemporaryDirectory() as folder:
        cloned = [Path(folder) / f"{index}.policy" for index in range(policies)]
        run_modules(
            "learner.behaviour_cloning",
            [
                ("--env", env, *datasets, "--steps", steps, "--batch-size", _BATCH_SIZE, "--seed", seed + index,
                 "--output", path)
                for index, path in enumerate(cloned)
            ],
            at_once=min(policies, available_cores()),  # one thread each is all that so small networks use
            ended=lambda count: print(f"cloned policy {count} of {policies}", flush=True),
        )  # fmt: skip
        provenance = {
            "policies": f"{policies} by behaviour cloning, {steps} steps of {_BATCH_SIZE}, seeds from {seed}",
            "cloned_from": [Path(source).name if Path(source).exists() else source for source in sources],
            "program": f"awac-online {version('awac-online')}",
        }
        recorded = run_module("actors.recording", "rollout", "--env", env, "--episodes", episodes, "--seed", seed,
                              "--provenance", json.dumps(provenance), "--output", output,
                              *(word for path in cloned for word in ("--policy", path)))  # fmt: skip
    facts = json.loads(recorded)
    print(
        f"{facts['output']}: {facts['episodes']} episodes, {facts['steps']:,} steps, "
        f"{facts['success_any']:.0%} reach the goal at some step"
    )
    return 0


def _check_sources(env: str, sources: Sequence[str]) -> None:
    """Refuse here, once, what each of the processes that clone would refuse."""
    task = find_task(env)
    if task is None:
        raise ConfigError(f"--env: expected one of {', '.join(TASKS)}, got {env!r}")
    load_dataset(sources, spec=ExperienceSpec(task.name, task.observation_dim, task.action_dim, task.max_episode_steps))
