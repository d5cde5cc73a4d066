from __future__ import annotations

from dataclasses import replace

import torch

from learner.config import LearnerConfig
from learner.session import Session
from learner.update import named_tensors
from replay_service.config import RunConfig
from tests.learner.conftest import OpenSession

CONFIG = LearnerConfig(policy_hidden_sizes=(4,), critic_hidden_sizes=(4,))


def test_networks_and_random_numbers_are_those_of_the_runs_seed(
    open_session: OpenSession, run_config: RunConfig
) -> None:
    def opened(seed: int) -> Session:
        return open_session(replace(run_config, seed=seed), CONFIG)

    one, same, other = (named_tensors(opened(seed).state) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    for name in ("policy.layers.0.weight", "critics.weights.0", "targets.weights.0", "generator"):
        assert not torch.equal(one[name], other[name]), name
