from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher import cli
from launcher.doubtful_settings import doubts
from launcher.experiment import ExperimentConfig
from learner.config import PRESETS, LearnerConfig
from replay_service.config import EnvironmentConfig, ReplayConfig, RunConfig
from replay_service.tasks import TASKS

DOOR = EnvironmentConfig(max_episode_steps=200, observation_dim=39, action_dim=28)
PENDULUM = EnvironmentConfig(max_episode_steps=200, observation_dim=3, action_dim=1)


def experiment(preset: str, run: dict[str, Any], learner: dict[str, Any]) -> ExperimentConfig:
    given: dict[str, Any] = {"env": "door", "environment": DOOR, "replay": ReplayConfig(evict_seed=False), **run}
    return ExperimentConfig(run=RunConfig(**given), learner=replace(LearnerConfig(**PRESETS[preset]), **learner))


@pytest.mark.parametrize("preset", ["published", "paper", "strong", "behaviour-cloning"])
def test_the_presets_of_the_hand_tasks_raise_none(preset: str) -> None:
    assert list(doubts(experiment(preset, {}, {}))) == []


def test_the_preset_of_other_environments_raises_none() -> None:
    run = {"env": "Pendulum-v1", "environment": PENDULUM, "dataset": ("none",)}
    assert list(doubts(experiment("locomotion", run, {}))) == []


@pytest.mark.parametrize("task", TASKS)
def test_the_default_buffer_of_each_hand_task_has_room(task: str) -> None:
    shape = EnvironmentConfig(
        max_episode_steps=200, observation_dim=TASKS[task].observation_dim, action_dim=TASKS[task].action_dim
    )
    assert list(doubts(experiment("strong", {"env": task, "environment": shape}, {}))) == []


@pytest.mark.parametrize(
    "run",
    [
        {"replay": ReplayConfig(evict_seed=False, max_memory_mb=256, capacity=700_000)},
        {"replay": ReplayConfig(evict_seed=False, max_memory_mb=64), "num_env_steps": 100_000},
        {"replay": ReplayConfig(evict_seed=False, max_memory_mb=64), "redis_url": "redis://elsewhere:6379"},
    ],
    ids=["smaller buffer", "short run", "the user's Redis"],
)
def test_a_buffer_that_fits_or_is_another_s_affair_raises_none(run: dict[str, Any]) -> None:
    assert list(doubts(experiment("strong", run, {}))) == []


@pytest.mark.parametrize(
    ("run", "learner", "words"),
    [
        ({"rollout_length": 5}, {}, "so 40% of the online transitions have fewer rewards"),
        ({"rollout_length": 1}, {}, "so 100% of the online transitions"),
        ({}, {"discount": 0.995}, "returns down to -200 are possible"),
        ({"replay": ReplayConfig(evict_seed=True)}, {}, "its offline part shrinks to nothing"),
        ({"replay": ReplayConfig(evict_seed=False, max_memory_mb=256)}, {}, "1,000,000 transitions take about 261 MiB"),
        ({"dataset": ("none",)}, {}, "learner.offline_fraction has no effect without a dataset"),
        ({"dataset": ("none",)}, {"offline_fraction": None, "normalise_observations": True}, "give the scale"),
        ({"env": "Pendulum-v1", "environment": PENDULUM}, {"offline_fraction": None}, "at or below 0"),
        ({"lockstep": True}, {"publish_every_grad_steps": 7}, "publish_every_grad_steps has no effect"),
        ({"lockstep": True, "max_env_steps_ahead": 5_000}, {}, "max_env_steps_ahead has no effect"),
    ],
)
def test_a_doubtful_combination_is_told_in_one_sentence(
    run: dict[str, Any], learner: dict[str, Any], words: str
) -> None:
    (sentence,) = doubts(experiment("strong", run, learner))
    assert words in sentence


def test_it_is_told_on_stderr_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "--env", "door", "--rollout-length", "5", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("warning: rollout_length 5 with learner.n_step 3")
    assert "warning" not in out
