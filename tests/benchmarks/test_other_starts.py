from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.config import EvaluatorConfig
from benchmarks import other_starts
from benchmarks.critic_judgement import FIRST_SEED
from launcher.experiment import ExperimentConfig
from learner.checkpoint import CheckpointStore, Progress
from learner.config import LearnerConfig
from learner.update import make_state
from replay_service.config import EnvironmentConfig, RunConfig

LEARNER = LearnerConfig(policy_hidden_sizes=(8,), critic_hidden_sizes=(8,), evaluated_average_rate=0.01)
SHAPE = EnvironmentConfig(max_episode_steps=20, observation_dim=3, action_dim=1)
RUN = RunConfig(env="Pendulum-v1", dataset=("none",), run_id="r", environment=SHAPE)


def test_both_policies_of_a_checkpoint_are_judged_on_other_starts_than_the_evaluator_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = EvaluatorConfig()
    assert not evaluator.seed <= FIRST_SEED < evaluator.seed + evaluator.episodes
    state = make_state(LEARNER, RUN.spec, seed=0, device=torch.device("cpu"))
    assert state.evaluated_average is not None
    with torch.no_grad():
        for parameter in state.evaluated_average.parameters():
            parameter.add_(0.5)  # so that both behave differently
    CheckpointStore(tmp_path / "checkpoints", spec=RUN.spec, config=LEARNER).save(state, Progress())
    (tmp_path / "config.toml").write_text(
        replace(ExperimentConfig(), run=RUN, learner=LEARNER).to_toml(), encoding="utf-8"
    )
    (tmp_path / "launcher.lock").touch()
    monkeypatch.setattr("sys.argv", ["other_starts", str(tmp_path), "--episodes", "3"])
    assert other_starts.main() == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [first["policy_of"], second["policy_of"]] == ["evaluator", "actors"]
    assert first["episode_length"] == second["episode_length"] == 20
    assert first["episode_return"] != second["episode_return"]


@pytest.mark.parametrize(("share", "episodes", "expected"), [(0.5, 100, 0.05), (1.0, 50, 0.0), (None, 50, None)])
def test_the_standard_error_of_a_share(share: float | None, episodes: int, expected: float | None) -> None:
    assert other_starts.standard_error(share, episodes) == expected


def test_a_folder_without_a_run_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["other_starts", "/no/such/run"])
    assert other_starts.main() == 2
    assert "holds no run" in capsys.readouterr().err
