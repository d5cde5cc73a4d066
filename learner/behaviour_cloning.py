"""Behaviour cloning by maximum likelihood: the policy that the shipped demonstrations were recorded with.

    python -m learner.behaviour_cloning --env pen --dataset PATH --steps 10000 --output pen.policy

The policy file is one encoded `PolicyWeights` message (`replay_service.wire`), so reading it unpickles nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch

from learner import awac
from learner.config import LearnerConfig
from learner.networks import GaussianPolicy, PublicationStamp, export_policy
from learner.update import std_bounds
from replay_service import wire
from replay_service.config import require_at_least
from replay_service.datasets import OfflineDataset, load_dataset
from replay_service.errors import ConfigError
from replay_service.experience import ExperienceSpec
from replay_service.policy_weights import PolicySpec, PolicyWeights
from replay_service.process import configure_logging, die_with_launcher, run_role
from replay_service.tasks import TASKS

_REPORT_EVERY_STEPS = 1_000

_log = logging.getLogger(__name__)


def clone(
    dataset: OfflineDataset, spec: ExperienceSpec, config: LearnerConfig, *, steps: int, batch_size: int, seed: int
) -> PolicyWeights:
    """Fit a Gaussian policy to a dataset's actions.

    Args:
        dataset: all of its steps are used alike.
        spec: of the environment.
        config: gives the policy's shape, its bounds, step size and weight decay.
        steps: gradient steps.
        batch_size: transitions a step, drawn with replacement.
        seed: of initialisation and sampling.

    Returns:
        The policy, as version 1.
    """
    observations = torch.from_numpy(np.concatenate([e.observations[:-1] for e in dataset.episodes]))
    actions = torch.from_numpy(np.concatenate([e.actions for e in dataset.episodes]))
    generator = torch.Generator().manual_seed(seed)
    policy = GaussianPolicy(
        PolicySpec(spec.observation_dim, spec.action_dim, config.policy_hidden_sizes),
        std_bounds=std_bounds(config),
        generator=generator,
    )
    optimizer = torch.optim.Adam(
        policy.parameters(), lr=config.policy_learning_rate, weight_decay=config.policy_weight_decay, fused=True
    )
    for step in range(1, steps + 1):
        rows = torch.randint(len(actions), (batch_size,), generator=generator)
        log_prob = awac.gaussian_log_prob(policy(observations[rows]), policy.log_std(), actions[rows])
        loss = awac.policy_loss(log_prob, torch.ones_like(log_prob))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        if step % _REPORT_EVERY_STEPS == 0 or step == steps:
            # Several may be cloned at once, by seed, into one terminal.
            _log.info("seed %d: step %d of %d: loss %.1f", seed, step, steps, loss.item())
    return export_policy(policy, PublicationStamp(version=1, grad_steps=steps, env_steps=0, unix_seconds=time.time()))


def main() -> int:
    """Clone the policy behind a dataset and write it to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m learner.behaviour_cloning",
        description="Fit a Gaussian policy to the actions of a dataset by maximum likelihood, and write it to a file.",
    )
    parser.add_argument("--env", required=True, help=f"task that the dataset is of: {', '.join(TASKS)}")
    parser.add_argument(
        "--dataset", action="append", required=True, help="file, folder or Minari id; may be given several times"
    )
    parser.add_argument("--steps", type=int, default=10_000, help="gradient steps; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=256, help="transitions a gradient step; default: %(default)s")
    parser.add_argument(
        "--hidden-sizes", type=int, nargs="+", default=[256, 256, 256, 256], metavar="UNITS",
        help="units of each hidden layer of the policy; default: four layers of 256",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first weights and of what is drawn; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, required=True, help="policy file to write; its folder is made")
    arguments = parser.parse_args()
    die_with_launcher()
    configure_logging("behaviour-cloning")
    # For batches of a few hundred rows a second thread gains next to nothing, and beside another busy process two
    # wait for each other at every operation: on two cores they took 14 steps a second where one takes 100.
    torch.set_num_threads(1)
    require_at_least("--steps", arguments.steps, 1)
    require_at_least("--batch-size", arguments.batch_size, 1)
    require_at_least("--seed", arguments.seed, 0)
    if arguments.env not in TASKS:
        raise ConfigError(f"--env: expected one of {', '.join(TASKS)}, got {arguments.env!r}")
    task = TASKS[arguments.env]
    spec = ExperienceSpec(task.name, task.observation_dim, task.action_dim, task.max_episode_steps)
    dataset = load_dataset(arguments.dataset, spec=spec)
    config = LearnerConfig(policy_hidden_sizes=tuple(arguments.hidden_sizes))
    policy = clone(dataset, spec, config, steps=arguments.steps, batch_size=arguments.batch_size, seed=arguments.seed)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(wire.encode_policy_weights(policy))
    return 0


if __name__ == "__main__":
    sys.exit(run_role(main))
