"""The configuration file: what is written is what the command line and every role read back."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from actors.config import ActorConfig, EvaluatorConfig
from launcher import cli
from launcher.experiment import ExperimentConfig, LauncherConfig, preset_name, refuse_changes, resolve
from learner.config import PRESETS, LearnerConfig
from replay_service.config import EnvironmentConfig, RunConfig
from replay_service.config_file import load_role_config, load_run_config
from replay_service.errors import ConfigError

SHAPE = EnvironmentConfig(max_episode_steps=200, observation_dim=45, action_dim=24)


def write(path: Path, config: ExperimentConfig) -> Path:
    path.write_text(config.to_toml(), encoding="utf-8")
    return path


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_roles_read_back_what_was_written_for_every_preset(tmp_path: Path, preset: str) -> None:
    learner = LearnerConfig(**PRESETS[preset])
    config = ExperimentConfig(run=RunConfig(env="pen", preset=preset), learner=learner)
    resolved = resolve(config, run_id="x", environment=SHAPE)
    path = write(tmp_path / "config.toml", resolved)
    assert load_run_config(path) == resolved.run
    assert load_role_config(path, "learner", LearnerConfig) == learner
    assert load_role_config(path, "actor", ActorConfig) == ActorConfig()
    assert load_role_config(path, "evaluator", EvaluatorConfig) == EvaluatorConfig()


def test_the_command_line_reads_back_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ["up", "--env", "door", "--preset", "paper", "--dataset", "none", "--learner.batch-size", "77", "--dry-run"]
    assert cli.main([*first, "--run-id", "x"]) == 0
    written = capsys.readouterr().out
    path = tmp_path / "config.toml"
    path.write_text(written)
    assert cli.main(["up", "--config", str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out == written
    assert tomllib.loads(written)["learner"]["batch_size"] == 77


def test_layers_command_line_over_environment_over_file_over_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        'env = "pen"\npreset = "paper"\ndataset = ["none"]\nactors = 3\n[learner]\nbatch_size = 5\nn_step = 2\n'
    )
    monkeypatch.setenv("AWAC_ACTORS", "4")
    monkeypatch.setenv("AWAC_LEARNER_N_STEP", "3")
    assert cli.main(["up", "--config", str(path), "--learner.n-step", "6", "--dry-run"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert shown["actors"] == 4
    assert shown["dataset"] == ["none"]
    assert (shown["learner"]["batch_size"], shown["learner"]["n_step"]) == (5, 6)
    assert shown["learner"]["temperature"] == PRESETS["paper"]["temperature"]
    assert shown["learner"]["advantage_clip"] == "none"


def test_a_path_to_a_dataset_is_made_absolute_because_roles_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.npz").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    config = ExperimentConfig(run=RunConfig(env="pen", dataset=("data.npz", "D4RL/pen/human-v2")))
    resolved = resolve(config, run_id="x", environment=SHAPE)
    assert resolved.run.dataset == (str(tmp_path / "data.npz"), "D4RL/pen/human-v2")


def test_the_preset_follows_the_kind_of_environment() -> None:
    assert preset_name(RunConfig(env="door")) == "strong"
    assert preset_name(RunConfig(env="Pendulum-v1")) == "locomotion"
    assert preset_name(RunConfig(env="Pendulum-v1", preset="paper")) == "paper"
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        preset_name(RunConfig(preset="papr"))


@pytest.mark.parametrize(
    ("change", "name"),
    [({"env": "door"}, "env"), ({"seed": 9}, "seed"), ({"dataset": ("other",)}, "dataset")],
)
def test_a_resumed_run_keeps_what_makes_it_that_run(change: dict[str, object], name: str) -> None:
    saved = ExperimentConfig(run=RunConfig(env="pen"))
    wanted = replace(saved, run=replace(saved.run, **change))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"keeps its {name}"):
        refuse_changes(saved, wanted)
    refuse_changes(saved, replace(saved, run=replace(saved.run, num_env_steps=5, actors=9)))


@pytest.mark.parametrize(("name", "value"), [("num_critics", 3), ("policy_hidden_sizes", (8, 8)), ("max_q", None)])
def test_a_resumed_run_keeps_what_its_checkpoints_hold(name: str, value: object) -> None:
    saved = ExperimentConfig(run=RunConfig(env="pen"))
    with pytest.raises(ConfigError, match=rf"keeps its learner\.{name} \(learner\.{name}: .*, now "):
        refuse_changes(saved, replace(saved, learner=replace(saved.learner, **{name: value})))  # type: ignore[arg-type]
    refuse_changes(saved, replace(saved, learner=replace(saved.learner, batch_size=7)))


def test_a_preset_brings_settings_of_the_run_along_below_what_the_user_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["up", "--env", "pen", "--dry-run"]) == 0
    told = tomllib.loads(capsys.readouterr().out)
    assert (told["num_offline_steps"], told["utd_ratio"], told["replay"]["evict_seed"]) == (5_000, 1.0, False)
    assert told["learner"]["policy_average_rate"] == 0.001
    assert cli.main(["up", "--env", "pen", "--preset", "strong", "--utd-ratio", "2", "--dry-run"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["utd_ratio"] == 2.0


def test_a_device_that_no_learner_takes_is_refused_before_anything_is_started() -> None:
    for device in ("auto", "cpu", "cuda", "cuda:1"):
        assert LauncherConfig(device=device).device == device
    for device in ("gpu", "mps", "cuda:", "cuda:x", ""):
        with pytest.raises(ConfigError, match=r"launcher\.device: expected auto, cpu, cuda or cuda:N, got"):
            LauncherConfig(device=device)


@pytest.mark.parametrize("name", ["actor_cpus", "learner_cpus", "learner_gpus", "replay_cpus", "evaluator_cpus"])
@pytest.mark.parametrize("value", ["inf", "nan", "-0.5"])
def test_a_share_that_ray_cannot_reserve_is_refused_before_it_is_asked(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"launcher\.{name}: expected a finite number of at least 0, got {value}"):
        LauncherConfig(**{name: float(value)})  # type: ignore[arg-type]
    assert getattr(LauncherConfig(**{name: 0.0}), name) == 0.0  # type: ignore[arg-type]
