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
    run.lock.touch()
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
    path.write_text('env = "pen"\npreset = 3\nrun_id = "x"\nlearner = 1\n[environment]\n', encoding="utf-8")
    assert cli.main(["up", "--config", str(path), "--dry-run"]) == 2
    assert "preset: expected one of" in shown(capfd)


def test_a_file_that_was_written_by_hand_wins_over_a_preset(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('env = "pen"\npreset = "strong"\nrun_id = "mine"\n[learner]\nn_step = 3\n', encoding="utf-8")
    found = configured(capfd, "--config", str(path), "--preset", "published")
    assert (found["preset"], found["run_id"], found["learner"]["n_step"]) == ("published", "mine", 3)
    assert found["learner"]["num_critics"] == 2
