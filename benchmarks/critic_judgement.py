"""What do the critics of a run know? Of its newest checkpoint: do they tell good states from bad, and good actions too?

    python -m benchmarks.critic_judgement RUN --episodes 60

States: the policy plays episodes with its mean action, and the mean over critics of Q(s, mean action) is held against
the discounted return that followed, the last step's reward going on for ever. Actions: the same starts are played by
others, who at every step take a sample of the policy, or the one of K samples that the critics like best. Where critics
know which actions are better, the latter solve more.

The run must have stopped: a checkpoint that is being replaced cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.environment import Environment, make_environment
from launcher.run_directory import find_run
from learner.checkpoint import CheckpointStore
from learner.config import LearnerConfig
from learner.update import LearnerState, acting_policy, make_state
from replay_service.config import RunConfig
from replay_service.config_file import load_role_config, load_run_config
from replay_service.errors import USER_ERROR_EXIT_CODE, CheckpointError, UserError

FIRST_SEED = 2_000_000
"""Of starts that neither actors nor the evaluator play."""

Act = Callable[[Tensor], Tensor]
"""(O,) -> (A,)."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode of T steps."""

    observations: Tensor
    """(T, O)."""
    actions: Tensor
    """(T, A)."""
    rewards: np.ndarray
    """(T,)."""
    successes: np.ndarray
    """(T,) bool."""


def restore(run: Path) -> tuple[RunConfig, LearnerConfig, LearnerState]:
    """The newest checkpoint of a run.

    Raises:
        UserError: there is no run, or no sound checkpoint.
    """
    directory = find_run(run)
    config = load_run_config(directory.config)
    learner = load_role_config(directory.config, "learner", LearnerConfig)
    state = make_state(learner, config.spec, seed=0, device=torch.device("cpu"))
    if CheckpointStore(directory.checkpoints, spec=config.spec, config=learner).restore(state) is None:
        raise CheckpointError(f"{run} has no checkpoint yet")
    return config, learner, state


def play(environment: Environment, act: Act, seed: int) -> Episode:
    """One episode from a seeded start."""
    observation = environment.reset(seed=seed)
    observations, actions, rewards, successes = [], [], [], []
    while True:
        seen = torch.from_numpy(observation)
        action = act(seen)
        step = environment.step(action.numpy())
        observations.append(seen)
        actions.append(action)
        rewards.append(step.reward)
        successes.append(bool(step.success))
        if step.terminated or step.truncated:
            return Episode(torch.stack(observations), torch.stack(actions), np.array(rewards), np.array(successes))
        observation = step.observation


def returns_to_go(rewards: np.ndarray, discount: float) -> np.ndarray:
    """(T,) -> (T,): discounted sums, as if the last reward came again for ever after."""
    total = rewards[-1] / (1.0 - discount)
    sums = np.empty(len(rewards))
    for index in range(len(rewards) - 1, -1, -1):
        total = rewards[index] + discount * total
        sums[index] = total
    return sums


def players(state: LearnerState, samples: int) -> dict[str, Act]:
    """Who plays: the policy that actors get, by its mean, by samples, and by the best of K samples of it."""
    policy = acting_policy(state)
    generator = torch.Generator().manual_seed(0)
    std = policy.log_std().exp()

    def draws(observation: Tensor, count: int, scale: float) -> Tensor:
        mean = policy(observation[None])
        noise = torch.randn(count, mean.shape[1], generator=generator)
        return torch.cat([mean, mean + scale * std * noise]).clamp(-1.0, 1.0)

    def best(scale: float) -> Act:
        def act(observation: Tensor) -> Tensor:
            actions = draws(observation, samples - 1, scale)
            values = state.critics(observation.expand(len(actions), -1), actions).mean(dim=0)
            return actions[values.argmax()]

        return act

    return {
        "the mean action": lambda observation: draws(observation, 0, 0.0)[0],
        "a sample": lambda observation: draws(observation, 1, 1.0)[1],
        f"the best of {samples} samples": best(1.0),
        f"the best of {samples} samples at half the standard deviation": best(0.5),
    }


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--episodes", type=int, default=60, help="of each player, on the same starts")
    parser.add_argument("--samples", type=int, default=16, help="K")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        run, learner, state = restore(arguments.run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    environment = make_environment(run.env, max_episode_steps=run.environment.max_episode_steps)
    for name, act in players(state, arguments.samples).items():
        episodes = [play(environment, act, FIRST_SEED + index) for index in range(arguments.episodes)]
        solved = np.mean([episode.successes[-1] for episode in episodes])
        met = np.mean([episode.successes.any() for episode in episodes])
        print(f"{name}: {solved:.0%} at the last step, {met:.0%} at any step", flush=True)
        if name == "the mean action":
            values = np.concatenate([state.critics(e.observations, e.actions).mean(dim=0).numpy() for e in episodes])
            found = np.concatenate([returns_to_go(e.rewards, learner.discount) for e in episodes])
            print(
                f"  Q against the return that followed, {len(values):,} states: correlation "
                f"{np.corrcoef(values, found)[0, 1]:.2f}, mean {values.mean():.1f} against {found.mean():.1f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
