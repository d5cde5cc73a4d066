"""How fast is one actor here? `python -m actors.calibration --config run.toml` prints one line of JSON.

It rolls out an untrained policy, sends nothing, and says environment steps a second and the core seconds of a step.
"""

from __future__ import annotations

import os

# As actors run; must be set before NumPy is loaded.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from actors.environment import Environment, make_environment
from actors.policy import NumpyPolicy
from actors.rollout import Rollout
from replay_service.config import RunConfig
from replay_service.config_file import load_run_config
from replay_service.experience import ExperienceSpec
from replay_service.policy_weights import PolicySpec, PolicyWeights
from replay_service.process import configure_logging, run_role

_HIDDEN_SIZES = (256, 256)
"""The policy is a small part of a step: its true size would change little."""


def untrained_weights(spec: ExperienceSpec) -> PolicyWeights:
    """A policy that acts at random around 0."""
    shape = PolicySpec(spec.observation_dim, spec.action_dim, _HIDDEN_SIZES, True)
    draw = np.random.default_rng(0)
    return PolicyWeights(
        spec=shape,
        version=0,
        grad_steps=0,
        env_steps=0,
        published_unix_seconds=0.0,
        weights=tuple(0.05 * draw.standard_normal(layer, dtype=np.float32) for layer in shape.layer_shapes),
        biases=tuple(np.zeros(layer[0], dtype=np.float32) for layer in shape.layer_shapes),
        log_std=np.full(spec.action_dim, -1.0, dtype=np.float32),
    )


def measure(run: RunConfig, environment: Environment, seconds: float) -> tuple[float, float]:
    """Roll out for a while, after a first rollout that is not counted.

    Returns:
        Environment steps a second, and core seconds of one step.
    """
    rollout = Rollout(environment, np.random.default_rng(run.seed), actor_id=0, epoch=0)
    policy = NumpyPolicy(untrained_weights(environment.spec))
    rollout.collect(policy, run.rollout_length, lambda: False)
    steps, began, used = 0, time.monotonic(), time.process_time()
    deadline = began + seconds
    while time.monotonic() < deadline:
        trajectory, _outcome = rollout.collect(policy, run.rollout_length, lambda: time.monotonic() >= deadline)
        steps += trajectory.num_steps
    return steps / (time.monotonic() - began), (time.process_time() - used) / steps


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m actors.calibration", description=measure.__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the run's TOML file")
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    configure_logging("calibration")
    run = load_run_config(arguments.config)
    environment = make_environment(run.env, max_episode_steps=run.environment.max_episode_steps)
    rate, core_seconds = measure(run, environment, arguments.seconds)
    environment.close()
    print(json.dumps({"per_second": rate, "core_seconds": core_seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(run_role(main))
