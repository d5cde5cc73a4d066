"""`AWAC_*` environment variables are settings of `launcher up`, and of no other command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher import cli
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
