from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.critic_judgement import players, returns_to_go
from learner.config import PRESETS, LearnerConfig
from learner.update import acting_policy, make_state
from replay_service.experience import ExperienceSpec

SPEC = ExperienceSpec("relocate", 39, 30, 200)


def test_the_last_reward_goes_on_for_ever() -> None:
    rewards = np.array([-1.0, 0.0, -1.0, -1.0])
    on = np.concatenate([rewards, np.full(5_000, -1.0)])
    slow = [sum(0.9**k * r for k, r in enumerate(on[t:])) for t in range(4)]
    np.testing.assert_allclose(returns_to_go(rewards, 0.9), slow)
    np.testing.assert_allclose(returns_to_go(np.zeros(3), 0.99), 0.0)


@torch.no_grad()
def test_the_best_of_samples_is_worth_no_less_to_the_critics_than_the_mean_action() -> None:
    state = make_state(LearnerConfig(**PRESETS["strong"]), SPEC, seed=0, device=torch.device("cpu"))
    chosen = players(state, 16)
    draw = torch.Generator().manual_seed(1)
    better = 0
    for _ in range(20):
        observation = torch.randn(39, generator=draw)
        mean, best = chosen["the mean action"](observation), chosen["the best of 16 samples"](observation)
        torch.testing.assert_close(mean, acting_policy(state)(observation[None])[0])
        worth = state.critics(observation.expand(2, -1), torch.stack([mean, best])).mean(dim=0)
        assert worth[1] >= worth[0] - 1e-6
        better += int(worth[1] > worth[0])
    assert better > 10


def test_a_folder_without_a_run_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import critic_judgement

    monkeypatch.setattr("sys.argv", ["critic_judgement", "/no/such/run"])
    assert critic_judgement.main() == 2
    assert "holds no run" in capsys.readouterr().err
