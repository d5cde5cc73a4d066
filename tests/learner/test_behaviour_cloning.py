"""Behaviour cloning: it finds the expert that a dataset was recorded with, and its program says what it does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.policy import NumpyPolicy
from learner import behaviour_cloning
from learner.behaviour_cloning import clone
from learner.config import LearnerConfig
from replay_service import wire
from replay_service.datasets import Episode, OfflineDataset
from replay_service.experience import ExperienceSpec
from replay_service.policy_weights import PolicyWeights
from replay_service.tasks import TASKS

SPEC = ExperienceSpec("synthetic", observation_dim=3, action_dim=2, max_episode_steps=20)
CONFIG = LearnerConfig(policy_hidden_sizes=(16,), policy_learning_rate=1e-2)
GAIN = np.array([[0.3, -0.2, 0.1], [0.0, 0.4, -0.3]], dtype=np.float32)
"""Of the expert: a = GAIN s."""


def expert_data(spec: ExperienceSpec = SPEC, gain: np.ndarray = GAIN) -> OfflineDataset:
    """Observations of one step say nothing of those of the next."""
    draw = np.random.default_rng(0)
    shape = (spec.max_episode_steps + 1, spec.observation_dim)
    observations = [draw.uniform(-1.0, 1.0, shape).astype(np.float32) for _ in range(10)]
    rewards = np.zeros(spec.max_episode_steps, dtype=np.float32)
    return OfflineDataset(tuple(Episode(o, o[:-1] @ gain.T, rewards, False, True) for o in observations), ("expert",))


def cloned(steps: int, *, seed: int = 0) -> PolicyWeights:
    return clone(expert_data(), SPEC, CONFIG, steps=steps, batch_size=32, seed=seed)


def judge(policy: PolicyWeights) -> tuple[float, float]:
    """Mean absolute error of the mean actions, and mean log-likelihood of the expert's actions, in nats."""
    episodes = expert_data().episodes
    means = np.concatenate([NumpyPolicy(policy).mean(episode.observations[:-1]) for episode in episodes])
    errors = np.concatenate([episode.actions for episode in episodes]) - means
    log_probs = -0.5 * (errors / np.exp(policy.log_std)) ** 2 - policy.log_std - 0.5 * np.log(2.0 * np.pi)
    return float(np.abs(errors).mean()), float(log_probs.sum(axis=1).mean())


class TestClone:
    def test_finds_the_expert(self) -> None:
        first, last = cloned(1), cloned(300)
        (first_error, first_likelihood), (last_error, last_likelihood) = judge(first), judge(last)
        assert first_error > 0.15  # or the task is none
        assert last_error < 0.05
        assert last_likelihood > first_likelihood + 1.0
        assert (last.version, last.grad_steps, last.env_steps) == (1, 300, 0)

    def test_is_a_function_of_the_seed(self) -> None:
        one, same, other = (cloned(20, seed=seed).weights[0] for seed in (3, 3, 4))
        assert one.tobytes() == same.tobytes() != other.tobytes()


PEN = TASKS["pen"]
PEN_SPEC = ExperienceSpec("pen", PEN.observation_dim, PEN.action_dim, PEN.max_episode_steps)


class TestProgram:
    @pytest.fixture
    def two_threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        yield
        torch.set_num_threads(before)

    def run(self, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
        monkeypatch.setattr("sys.argv", ["behaviour_cloning", *options])
        # It would take caplog's handler away.
        monkeypatch.setattr(behaviour_cloning, "configure_logging", lambda _role: None)
        return behaviour_cloning.main()

    @pytest.mark.usefixtures("two_threads")
    def test_writes_the_policy_on_one_thread_and_names_the_seed(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        dataset = expert_data(PEN_SPEC, np.full((PEN.action_dim, PEN.observation_dim), 0.01, dtype=np.float32))
        monkeypatch.setattr(behaviour_cloning, "load_dataset", lambda _sources, *, spec: dataset)
        output = tmp_path / "made" / "pen.policy"
        options = ["--env", "pen", "--dataset", "expert", "--steps", "2", "--batch-size", "4", "--hidden-sizes", "5",
                   "6", "--seed", "3", "--output", str(output)]  # fmt: skip
        with caplog.at_level(logging.INFO, logger="learner.behaviour_cloning"):
            assert self.run(monkeypatch, *options) == 0
        assert torch.get_num_threads() == 1
        assert [message.partition(" loss")[0] for message in caplog.messages] == ["seed 3: step 2 of 2:"]
        found = wire.decode_policy_weights(output.read_bytes())
        config = LearnerConfig(policy_hidden_sizes=(5, 6))
        expected = clone(dataset, PEN_SPEC, config, steps=2, batch_size=4, seed=3)
        assert found.spec == expected.spec
        for one, other in zip(found.weights, expected.weights, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_its_help_is_for_users(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            self.run(monkeypatch, "--help")
        assert ended.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "Fit a Gaussian policy to the actions of a dataset by maximum likelihood" in text
        assert "Args:" not in text
        for help_text in ("gradient steps; default: 10000", "transitions a gradient step; default: 256",
                          "four layers of 256", "default: 0"):  # fmt: skip
            assert help_text in text
