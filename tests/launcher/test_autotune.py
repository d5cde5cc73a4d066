from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import autotune
from launcher.autotune import FEWEST_ACTORS, Speed, choose, with_measured_actors
from launcher.experiment import ExperimentConfig
from replay_service.config import AUTO_ACTORS, EnvironmentConfig, RunConfig
from replay_service.errors import ConfigError

ACTOR = Speed(per_second=1_000.0, core_seconds=0.001)
GPU_LEARNER = Speed(per_second=4_000.0, core_seconds=0.0001)


class TestChoose:
    def test_as_many_as_the_learner_needs_and_a_quarter_more(self) -> None:
        actors, reason = choose(ACTOR, GPU_LEARNER, utd_ratio=1.0, cores=64)
        assert actors == 5
        assert (
            reason
            == "5 actors: the learner makes 4,000 updates/s here and needs 4,000 env steps/s; one actor makes 1,000"
        )

    @pytest.mark.parametrize(("utd_ratio", "expected"), [(0.5, 10), (1.0, 5), (2.0, 3)])
    def test_more_updates_a_step_need_fewer_actors(self, utd_ratio: float, expected: int) -> None:
        assert choose(ACTOR, GPU_LEARNER, utd_ratio=utd_ratio, cores=64)[0] == expected

    def test_never_more_than_cores(self) -> None:
        actors, reason = choose(ACTOR, GPU_LEARNER, utd_ratio=0.1, cores=8)
        assert actors == 8
        assert reason.endswith("more than the 8 cores would bring no more")

    def test_a_slow_learner_gets_the_fewest(self) -> None:
        slow = Speed(per_second=50.0, core_seconds=0.02)
        actors, reason = choose(ACTOR, slow, utd_ratio=1.0, cores=2)
        assert actors == FEWEST_ACTORS
        assert "so that one can be replaced" in reason

    def test_a_learner_that_shares_its_cores_needs_fewer_steps_than_one_alone(self) -> None:
        # An update and its ten steps take 0.02 core seconds: 4 cores make 200 updates/s of them, not 400.
        learner = Speed(per_second=400.0, core_seconds=0.01)
        _actors, reason = choose(ACTOR, learner, utd_ratio=0.1, cores=4)
        assert "the learner makes 200 updates/s here and needs 2,000 env steps/s" in reason


class TestWithMeasuredActors:
    @staticmethod
    def experiment(**run: Any) -> ExperimentConfig:
        shape = EnvironmentConfig(max_episode_steps=200, observation_dim=3, action_dim=1)
        return ExperimentConfig(run=RunConfig(env="Pendulum-v1", dataset=("none",), environment=shape, **run))

    def test_a_number_is_left_alone(self) -> None:
        experiment = self.experiment(actors=7)
        assert with_measured_actors(experiment) == (experiment, "")

    def test_auto_becomes_a_number_and_nothing_else_changes(self) -> None:
        found, reason = with_measured_actors(self.experiment(actors=AUTO_ACTORS))
        assert found.run.actors >= FEWEST_ACTORS
        assert found == self.experiment(actors=found.run.actors)
        assert reason.startswith(f"{found.run.actors} actors: the learner makes ")

    def test_what_cannot_be_measured_is_said(self) -> None:
        unknown = self.experiment(actors=AUTO_ACTORS)
        unknown = replace(unknown, run=replace(unknown.run, env="NoSuchEnvironment-v0"))
        with pytest.raises(ConfigError, match=r"--actors auto: actors\.calibration failed .*NoSuchEnvironment.*number"):
            with_measured_actors(unknown)

    def test_what_takes_too_long_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(autotune, "_TIMEOUT_S", 0.01)  # no interpreter has started by then
        with pytest.raises(ConfigError, match=r"--actors auto: actors\.calibration took more than 0 s; give a number"):
            with_measured_actors(self.experiment(actors=AUTO_ACTORS))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["option", "option=", "variable", "file"])
def test_auto_is_taken_from_everywhere_and_written_as_a_number(way: str, tmp_path: Path) -> None:
    words = ["--env", "Pendulum-v1", "--dataset", "none", "--num-offline-steps", "0", "--dry-run"]
    environment = {name: value for name, value in os.environ.items() if name != "AWAC_ACTORS"}
    if way == "option":
        words += ["--actors", "auto"]
    elif way == "option=":
        words += ["--actors=auto"]
    elif way == "variable":
        environment["AWAC_ACTORS"] = "auto"
    else:
        (tmp_path / "run.toml").write_text('actors = "auto"\n', encoding="utf-8")
        words += ["--config", str(tmp_path / "run.toml")]
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "up", *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout)["actors"] >= FEWEST_ACTORS
    assert " actors: the learner makes " in done.stderr
    assert len(done.stderr.splitlines()) == 1
