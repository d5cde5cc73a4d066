"""Settings as a run's config.toml holds them: which are compared, and what is said of those that differ."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from launcher.experiment import ExperimentConfig
from launcher.run_directory import RunDirectory
from launcher.run_settings import OF_THE_EVALUATION, OF_THE_MACHINE, describe_differences, read_settings
from learner.config import LearnerConfig
from replay_service.config import RunConfig
from replay_service.errors import ConfigError


def settings_of(config: ExperimentConfig, folder: Path) -> dict[str, object]:
    folder.mkdir()
    directory = RunDirectory(folder)
    directory.write_config(config.to_toml())
    return read_settings(directory.config)


@pytest.mark.parametrize("pattern", [*OF_THE_MACHINE, *OF_THE_EVALUATION])
def test_every_pattern_fits_a_setting(pattern: str, tmp_path: Path) -> None:
    assert any(fnmatchcase(name, pattern) for name in settings_of(ExperimentConfig(), tmp_path / "run"))


def test_what_decides_what_a_run_learns_is_compared(tmp_path: Path) -> None:
    compared = {
        name
        for name in settings_of(ExperimentConfig(), tmp_path / "run")
        if not any(fnmatchcase(name, pattern) for pattern in OF_THE_MACHINE)
    }
    assert {
        "env", "dataset", "preset", "seed", "actors", "num_offline_steps", "num_env_steps", "utd_ratio",
        "initial_env_steps", "max_env_steps_ahead", "rollout_length", "environment.max_episode_steps",
        "replay.capacity", "replay.evict_seed", "learner.temperature", "learner.publish_every_grad_steps",
        "evaluator.episodes",
    } <= compared  # fmt: skip


def test_the_first_differing_settings_are_named_with_both_values(tmp_path: Path) -> None:
    one = settings_of(ExperimentConfig(run=RunConfig(actors=1)), tmp_path / "one")
    learner = LearnerConfig(temperature=2.0, advantage_clip=None, n_step=3, threads=2)
    other = settings_of(ExperimentConfig(run=RunConfig(actors=2), learner=learner), tmp_path / "other")
    said = describe_differences(one, other, may_differ=OF_THE_MACHINE)
    assert said == "actors (1 and 2), learner.n_step (1 and 3), learner.temperature (0.5 and 2.0), 1 more"
    assert describe_differences(one, one, may_differ=()) == ""


def test_a_run_older_than_a_setting_has_its_default_and_one_that_is_gone_counts(tmp_path: Path) -> None:
    now = settings_of(ExperimentConfig(), tmp_path / "now")
    path = tmp_path / "now" / "config.toml"
    text = path.read_text(encoding="utf-8")
    assert "n_step = 1\n" in text
    path.write_text(text.replace("n_step = 1\n", ""), encoding="utf-8")
    assert describe_differences(read_settings(path), now, may_differ=()) == ""
    path.write_text(text.replace("n_step = 1\n", "old_step = 1\n"), encoding="utf-8")
    said = describe_differences(read_settings(path), now, may_differ=())
    assert said == "learner.old_step (1 and 'absent')"


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("actors = \n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_settings(tmp_path / "config.toml")
