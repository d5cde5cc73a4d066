"""A checkpoint keeps the policy: what it publishes after a restore is judged on the fixed seeds exactly as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.config import EvaluatorConfig
from actors.environment import make_environment
from actors.evaluation import Score, evaluate
from actors.policy import NumpyPolicy
from learner.checkpoint import CheckpointStore, Progress
from learner.config import LearnerConfig
from learner.mirror import TransitionBatch
from learner.networks import PublicationStamp, export_policy
from learner.update import LearnerState, evaluated_policy, gradient_step, make_state
from replay_service import wire
from replay_service.experience import ExperienceSpec
from replay_service.run_state import Phase

EPISODES = 3


def train(state: LearnerState, config: LearnerConfig, spec: ExperienceSpec, steps: int) -> None:
    for _ in range(steps):
        rows, draw = 32, state.generator
        batch = TransitionBatch(
            torch.randn(rows, spec.observation_dim, generator=draw),
            torch.rand(rows, spec.action_dim, generator=draw) * 2 - 1,
            -torch.rand(rows, generator=draw).round(),
            torch.full((rows,), 0.99),
            torch.randn(rows, spec.observation_dim, generator=draw),
        )
        gradient_step(state, batch, config)


@pytest.mark.parametrize(
    ("acting", "evaluated"), [(1.0, None), (0.1, None), (1.0, 0.1)], ids=["the policy", "its average", "one of its own"]
)
def test_the_restored_policy_scores_as_the_saved_one(tmp_path: Path, acting: float, evaluated: float | None) -> None:
    environment = make_environment("pen")
    spec = environment.spec
    config = LearnerConfig(
        policy_hidden_sizes=(32, 32), critic_hidden_sizes=(32,), policy_average_rate=acting,
        evaluated_average_rate=evaluated,
    )  # fmt: skip

    def score(state: LearnerState) -> Score:
        message = wire.encode_policy_weights(export_policy(evaluated_policy(state), PublicationStamp(1, 0, 0, 0.0)))
        policy = NumpyPolicy(wire.decode_policy_weights(message))
        found = evaluate(environment, policy, episodes=EPISODES, first_seed=EvaluatorConfig().seed)
        assert found is not None
        return found

    def store() -> CheckpointStore:
        return CheckpointStore(tmp_path, spec=spec, config=config)

    saved = make_state(config, spec, seed=1, device=torch.device("cpu"))
    train(saved, config, spec, 20)
    store().save(saved, Progress(phase=Phase.ONLINE, online_grad_steps=20))
    expected = score(saved)

    restored = make_state(config, spec, seed=2, device=torch.device("cpu"))
    assert score(restored) != expected  # another policy is told apart
    store().restore(restored)
    assert score(restored) == expected
    environment.close()
