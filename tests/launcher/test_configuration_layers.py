"""`AWAC_*` environment variables are settings of `launcher up`, and of no other command."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.run_directory import RunDirectory
from replay_service.demonstrations import shipped_path


def shown(capfd: pytest.CaptureFixture[str]) -> str:
    out, err = capfd.readouterr()
    return re.sub(r"[│╭╮╰╯─\s]+", " ", out + err)


def test_an_environment_of_a_run_does_not_judge_a_dataset(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWAC_ENV", "pen")
    assert cli.main(["dataset", "inspect", str(shipped_path("door"))]) == 0
    assert "`launcher up --env door` takes it" in shown(capfd)


def test_a_run_is_scaled_to_a_number_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWAC_ACTORS", "5")
    assert cli.main(["scale", str(tmp_path)]) == 2
    assert re.search(r"(?i)--actors.*requires an argument|missing.*--actors", found := shown(capfd)), found


@pytest.mark.parametrize("words", [["--actors", "auto"], ["--actors=auto"]])
def test_only_up_measures_how_many_actors(words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scale", str(tmp_path), *words]) == 2
    assert re.search(r"(?i)unable to convert \"?auto", found := shown(capfd)), found


def test_variables_stand_between_options_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text('env = "pen"\nactors = 4\nseed = 7\n', encoding="utf-8")
    monkeypatch.setenv("AWAC_ACTORS", "5")
    monkeypatch.setenv("AWAC_ENV", "door")
    words = ["up", "--config", str(tmp_path / "run.toml"), "--dataset", "none", "--dry-run", "--env", "relocate"]
    assert cli.main(words) == 0
    out = capfd.readouterr().out
    assert 'env = "relocate"\n' in out
    assert "\nactors = 5\n" in out
    assert "\nseed = 7\n" in out


@pytest.fixture
def saved(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """`config.toml` of a run of pen with the preset `strong`, one setting of which was chosen."""
    assert cli.main(["up", "--env", "pen", "--dry-run", "--learner.temperature", "0.7", "--seed", "3"]) == 0
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.logs.mkdir()
    run.launcher_log.touch()
    run.config.write_text(capfd.readouterr().out, encoding="utf-8")
    return run.config


def configured(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["up", "--dry-run", *words]) == 0
    return tomllib.loads(capfd.readouterr().out)


def test_a_run_that_is_made_after_another_one_is_the_same_but_for_its_name(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = tomllib.loads(saved.read_text(encoding="utf-8"))
    again = configured(capfd, "--config", str(saved), "--run-dir", str(tmp_path / "again"), "--seed", "4")
    assert again.pop("run_id").startswith("again-")
    assert before.pop("run_id").startswith("pen-")
    assert again == {**before, "seed": 4}


def test_another_preset_takes_the_place_of_the_runs_own_and_leaves_what_was_chosen(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = configured(capfd, "--config", str(saved), "--preset", "published")
    plain = configured(capfd, "--env", "pen", "--preset", "published", "--learner.temperature", "0.7", "--seed", "3")
    assert found == {**plain, "run_id": found["run_id"]}


@pytest.mark.parametrize("env", ["relocate", "Pendulum-v1"])
def test_another_task_takes_the_place_of_the_runs_own_with_its_preset(
    saved: Path, capfd: pytest.CaptureFixture[str], env: str
) -> None:
    found = configured(capfd, "--config", str(saved), "--env", env)
    plain = configured(capfd, "--env", env, "--learner.temperature", "0.7", "--seed", "3")
    assert found == {**plain, "run_id": found["run_id"]}


def test_a_preset_that_was_chosen_goes_along_to_another_task(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "--env", "pen", "--dry-run", "--preset", "paper"]) == 0
    path = tmp_path / "config.toml"
    path.write_text(capfd.readouterr().out, encoding="utf-8")
    found = configured(capfd, "--config", str(path), "--env", "relocate")
    plain = configured(capfd, "--env", "relocate", "--preset", "paper")
    assert found == {**plain, "run_id": found["run_id"]}


def test_a_complete_file_that_is_no_runs_keeps_its_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "--env", "pen", "--dry-run", "--run-id", "mine"]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capfd.readouterr().out, encoding="utf-8")
    found = configured(capfd, "--config", str(path), "--actors", "16")
    assert (found["run_id"], found["actors"]) == ("mine", 16)


def test_a_damaged_file_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "damaged.toml"
    path.write_text('env = "pen"\npreset = 3\nrun_id = "x"\n[learner]\n[environment]\n', encoding="utf-8")
    assert cli.main(["up", "--config", str(path), "--dry-run"]) == 2
    assert "preset: expected one of" in shown(capfd)


def test_a_file_that_was_written_by_hand_wins_over_a_preset(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('env = "pen"\npreset = "strong"\nrun_id = "mine"\n[learner]\nn_step = 3\n', encoding="utf-8")
    found = configured(capfd, "--config", str(path), "--preset", "published")
    assert (found["preset"], found["run_id"], found["learner"]["n_step"]) == ("published", "mine", 3)
    assert found["learner"]["num_critics"] == 2


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["up", "--dry-run", "--actors", "2.5"], r"--actors: .*, got 2\.5"),
        (["up", "--dry-run", "--seed", "9007199254740993.5"], r"--seed: .*, got 9007199254740993\.5"),
        (["up", "--dry-run", "--seed", "9007199254740993.0"], r"--seed: .*, got 9007199254740993\.0"),
        (["up", "--dry-run", "--seed=-0.4"], r"--seed: .*, got -0\.4"),
        (["up", "--dry-run", "--num-env-steps", "1.0e400"], r"--num-env-steps: .*, got 1\.0e400"),
        (["up", "--dry-run", "--learner.policy-hidden-sizes", "255.9"], r"--learner\.policy-hidden-sizes: .*, got 255"),
        (["scale", "--actors", "2.9"], r"--actors: .*, got 2\.9"),
        (["chaos", "--kill", "actor", "--every", "9s", "--times", "1.6"], r"--times: .*, got 1\.6"),
    ],
)
def test_a_fraction_of_what_comes_whole_is_refused(
    words: list[str], where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert re.search(f"error: {where}", found := shown(capfd)), found
    assert "expected a whole number" in found


def test_a_fraction_in_a_variable_or_a_file_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[environment]\nmax_episode_steps = 150.7\n", encoding="utf-8")
    assert cli.main(["up", "--config", str(path), "--dry-run"]) == 2
    found = capfd.readouterr().err
    assert f"error: [environment][max_episode_steps] in {path}: expected a whole number, got 150.7\n" == found
    monkeypatch.setenv("AWAC_SEED", "0.5")
    assert cli.main(["up", "--dry-run"]) == 2
    assert capfd.readouterr().err == "error: AWAC_SEED: expected a whole number, got 0.5\n"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["up", "--dry-run", "--run-dir", ""], "--run-dir"),
        (["status", ""], "RUN"),
        (["plot", "runs/a", "", "--output", "x.png"], "RUNS"),
        (["report", "--output="], "--output"),
    ],
)
def test_an_empty_path_is_not_the_folder_that_one_is_in(
    words: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert capfd.readouterr().err.startswith(f"error: {name}: expected a path, got an empty one")
    assert not any(tmp_path.iterdir())


def test_a_whole_number_may_be_written_as_a_real_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("num_env_steps = 1e6\ninitial_env_steps = 2000.0\n", encoding="utf-8")
    found = configured(capfd, "--config", str(path), "--num-offline-steps", "1.5e3", "--learner.temperature", "0.7")
    assert (found["num_env_steps"], found["initial_env_steps"], found["num_offline_steps"]) == (1_000_000, 2_000, 1_500)


@pytest.mark.parametrize(
    ("text", "got"), [("environment = 5", "'5'"), ("learner = [128]", "'128'"), ("launcher = 'cpu'", "'cpu'"),
                      ("replay = []", "[]")]
)  # fmt: skip
def test_a_value_in_the_place_of_a_table_is_not_taken_for_its_first_setting(
    text: str, got: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    table = text.partition(" ")[0]
    assert cli.main(["up", "--config", str(path), "--dry-run"]) == 2
    assert f"error: [{table}] in {path}: expected a table of settings, got {got}: " in capfd.readouterr().err


@pytest.mark.parametrize("text", ["[[replay]]\ncapacity = 5000\n", "[[replay]]\n[[replay]]\ncapacity = 5000\n"])
def test_a_list_of_tables_is_none(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    assert cli.main(["up", "--config", str(path), "--dry-run"]) == 2
    assert f"error: [[replay]] in {path}: expected one table of settings: write [replay]" in capfd.readouterr().err


def test_an_empty_table_is_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 4\n[learner]\n[environment]\n", encoding="utf-8")
    assert configured(capfd, "--config", str(path))["seed"] == 4


def test_a_table_is_no_option_either(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "--dry-run", "--environment", "5"]) == 2
    assert "its own name, as in --environment.max-episode-steps" in capfd.readouterr().err
    monkeypatch.setenv("AWAC_REPLAY", "7")
    assert cli.main(["up", "--dry-run"]) == 2
    assert "error: AWAC_REPLAY: expected a table of settings" in capfd.readouterr().err
