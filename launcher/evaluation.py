"""`launcher eval`: how good a policy is on starts that nobody has played: a run's evaluations have the same 50."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.role_command import run_module
from launcher.wording import percent
from replay_service import wire
from replay_service.config import RunConfig, require_at_least
from replay_service.policy_weights import PolicyWeights
from replay_service.reports import Evaluation


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a policy did, and on which starts."""

    env: str
    policy: PolicyWeights
    episodes: int
    first_seed: int
    score: dict[str, float | None]
    """Fields of `actors.evaluation.Score`."""
    recorded: Evaluation | None
    """What the run's evaluator found for this version, when it has judged it."""

    @property
    def standard_error(self) -> float | None:
        """Of the success at the last step, as that of a share of independent episodes."""
        share = self.score["success_final"]
        return None if share is None else math.sqrt(share * (1.0 - share) / self.episodes)

    def fields(self) -> dict[str, Any]:
        """For programs."""
        return {
            "env": self.env,
            "policy_version": self.policy.version,
            "env_steps": self.policy.env_steps,
            "grad_steps": self.policy.grad_steps,
            "episodes": self.episodes,
            "first_seed": self.first_seed,
            **self.score,
            "standard_error": self.standard_error,
        }

    def lines(self) -> list[str]:
        """For people."""
        told = [
            f"{self.env}, policy version {self.policy.version}, {self.policy.env_steps:,} env steps; mean action, "
            f"{self.episodes} episodes from the starts of seeds {self.first_seed} to "
            f"{self.first_seed + self.episodes - 1}"
        ]
        if self.standard_error is not None:
            told.append(
                f"success at the last step {percent(self.score['success_final'])} "
                f"(standard error {100 * self.standard_error:.1f} points), at any step "
                f"{percent(self.score['success_any'])}, at {percent(self.score['success_fraction'])} of all steps"
            )
        told.append(f"return {self.score['episode_return']:.1f}, length {self.score['episode_length']:.0f} steps")
        found = self.recorded
        if found is not None and found.success_any is not None:
            told.append(
                f"the evaluator found, over its {found.episodes} episodes: success {percent(found.success_final)} at "
                f"the last step, {percent(found.success_any)} at any"
            )
        return told


def judge(
    run: RunConfig, chosen: tuple[PolicyWeights, Evaluation | None], *, episodes: int, first_seed: int
) -> Judgement:
    """Play a policy's mean action.

    Args:
        run: names the environment.
        chosen: a policy, and its evaluation when there is one.
        episodes: how many.
        first_seed: of the first start; the next ones follow.

    Raises:
        ConfigError: no episode is asked for, or the seed is negative.
        StepRefused: the environment cannot be made; its own words are on stderr.
        StepFailed: playing failed; its own words are on stderr.
    """
    require_at_least("--episodes", episodes, 1)
    require_at_least("--first-seed", first_seed, 0)
    policy, recorded = chosen
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "judged.policy"
        path.write_bytes(wire.encode_policy_weights(policy))
        printed = run_module("actors.recording", "evaluate", "--env", run.env, "--policy", path, "--episodes", episodes,
                             "--seed", first_seed,
                             "--max-episode-steps", run.environment.max_episode_steps)  # fmt: skip
    return Judgement(run.env, policy, episodes, first_seed, json.loads(printed.splitlines()[-1]), recorded)
