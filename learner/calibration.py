"""How fast is the learner here? `python -m learner.calibration --config run.toml` prints one line of JSON.

It takes online gradient steps on random transitions and says updates a second and the core seconds of an update.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the learner runs; before torch

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from learner.__main__ import choose_device
from learner.config import LearnerConfig
from learner.gradient_steps import GradientSteps, capture_for
from learner.matrix_products import prefer_onednn
from learner.mirror import ReplayMirror, Transitions
from learner.threads import use_threads
from learner.update import make_state
from replay_service.config_file import load_role_config, load_run_config
from replay_service.experience import ExperienceSpec
from replay_service.process import configure_logging, run_role

_TRANSITIONS = 20_000
_FIRST_UPDATES = 5


def measure(spec: ExperienceSpec, config: LearnerConfig, device: torch.device, seconds: float) -> tuple[float, float]:
    """Update for a while, after some updates that are not counted.

    Returns:
        Updates a second, and core seconds of one update.
    """
    state = make_state(config, spec, seed=0, device=device)
    state.lanes = use_threads(config, device)
    if device.type == "cpu":
        prefer_onednn()
    mirror = ReplayMirror(
        observation_dim=spec.observation_dim, action_dim=spec.action_dim, seed_steps=0, capacity=_TRANSITIONS,
        evict_seed=True, device=device,
    )  # fmt: skip
    draw = np.random.default_rng(0)
    shapes = ((spec.observation_dim,), (spec.action_dim,), (), (), (spec.observation_dim,))
    mirror.insert_online(
        Transitions(*(draw.standard_normal((_TRANSITIONS, *shape), dtype=np.float32) for shape in shapes)),
        first_step=0,
    )

    steps = GradientSteps(state, mirror, config, capture=capture_for(device, config))

    def update() -> torch.Tensor:
        return steps.take(config.batch_size, offline_fraction=None)[0]

    for _ in range(_FIRST_UPDATES):
        update().item()
    count, began, used = 0, time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds:
        update().item()  # reading waits for the device
        count += 1
    return count / (time.monotonic() - began), (time.process_time() - used) / count


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m learner.calibration", description=measure.__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the run's TOML file")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    configure_logging("calibration")
    config = load_role_config(arguments.config, "learner", LearnerConfig)
    spec = load_run_config(arguments.config).spec
    rate, core_seconds = measure(spec, config, choose_device(arguments.device), arguments.seconds)
    print(json.dumps({"per_second": rate, "core_seconds": core_seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(run_role(main))
