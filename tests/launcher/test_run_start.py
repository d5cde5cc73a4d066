"""A start that comes to nothing: the disk is as it was before, and a run that was to be replaced is never lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher import run_directory
from launcher.run_directory import RunDirectory
from launcher.run_preparation import RestartBehavior, prepare
from launcher.run_start import RunStart
from launcher.supervisor import RunFailed
from replay_service.errors import RunDirectoryError
from tests.faults import fill, small_disk

REFUSED = RunDirectoryError("refused")


def make_run(path: Path) -> RunDirectory:
    run = prepare(path, None).run
    run.write_config("env = 'pen'\n")
    (run.path / "evaluations.csv").write_text("x")
    run.lock.touch()
    return run


def begin(path: Path, behavior: RestartBehavior | None) -> RunStart:
    """As `launcher up` does until its roles are started, and the replay service until it opens the run."""
    prepared = prepare(path, behavior)
    start = RunStart(prepared)
    start.write("env = 'door'\n")
    prepared.run.lock.touch()
    prepared.run.connection.parent.mkdir(exist_ok=True)
    prepared.run.connection.write_text("{}")
    return start


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("behavior", ["restart", "overwrite"])
@pytest.mark.parametrize("end", ["failed", "stopped"])
def test_a_run_whose_successor_comes_to_nothing_has_its_place_again(
    tmp_path: Path, behavior: RestartBehavior, end: str
) -> None:
    run = make_run(tmp_path / "run")
    start = begin(run.path, behavior)
    assert start.failed(REFUSED, roles_may_live=False) if end == "failed" else start.stopped()
    assert run.config.read_text() == "env = 'pen'\n"
    assert (run.path / "evaluations.csv").exists()
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("end", ["failed", "stopped"])
def test_a_run_that_has_data_stays_and_the_one_before_it_is_named(
    tmp_path: Path, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    start = begin(run.path, "overwrite")
    run.opening.touch()
    assert not (start.failed(REFUSED, roles_may_live=False) if end == "failed" else start.stopped())
    assert run.config.read_text() == "env = 'door'\n"
    assert (tmp_path / "run.1" / "evaluations.csv").exists()
    told = f"the run that was in {run.path} before is kept, whole, as {tmp_path / 'run.1'}\n"
    assert capsys.readouterr().err == told


def test_what_roles_may_still_write_to_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert not begin(run.path, "overwrite").failed(REFUSED, roles_may_live=True)
    assert names(tmp_path) == ["run", "run.1"]
    assert run.connection.exists()
    assert f"is kept, whole, as {tmp_path / 'run.1'}" in capsys.readouterr().err


def test_a_log_that_the_error_names_stays_to_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    start = begin(run.path, "overwrite")
    log = run.logs / "replay.log"
    log.write_text("Traceback")
    assert not start.failed(RunFailed(f"replay ended again and again; its log is {log}"), roles_may_live=False)
    assert log.read_text() == "Traceback"
    assert f"is kept, whole, as {tmp_path / 'run.1'}" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), REFUSED, RunFailed("its log is {logs}/replay.log")])
def test_a_run_that_stays_is_the_latest_whatever_else_ended_it(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = make_run(Path("runs/earlier"))
    run_directory.remember_latest(earlier.path)
    start, run = begin(Path("runs/new"), None), RunDirectory(Path("runs/new"))
    crash = isinstance(error, RunFailed)
    end = RunFailed(str(error).format(logs=run.logs)) if crash else error
    assert not start.failed(end, roles_may_live=not crash)
    assert run_directory.find_run(None).path == run.path.resolve()


def test_a_run_that_was_started_meanwhile_stays_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_directory.remember_latest(make_run(Path("runs/earlier")).path)
    start = begin(Path("runs/refused"), None)
    other = make_run(Path("runs/other"))
    run_directory.remember_latest(other.path)
    assert start.failed(REFUSED, roles_may_live=False)
    assert run_directory.find_run(None).path == other.path.resolve()


def test_a_run_that_has_begun_is_not_taken_back_and_the_one_that_it_overwrites_is_gone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    start = begin(run.path, "overwrite")
    assert (tmp_path / "run.1").exists()
    start.begun()
    assert not start.failed(REFUSED, roles_may_live=False)
    assert not start.stopped()
    assert run.config.read_text() == "env = 'door'\n"
    assert names(tmp_path) == ["run"]


def test_a_new_run_leaves_no_directory_and_the_latest_run_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = make_run(Path("runs/earlier"))
    run_directory.remember_latest(earlier.path)
    assert begin(Path("runs/refused"), None).failed(REFUSED, roles_may_live=False)
    assert names(Path("runs")) == ["earlier", "latest"]
    assert run_directory.find_run(None).path == earlier.path.resolve()


def test_a_run_that_is_refused_when_it_has_data_is_not_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = make_run(Path("runs/earlier"))
    run_directory.remember_latest(earlier.path)
    start = begin(Path("runs/refused"), None)
    RunDirectory(Path("runs/refused")).opening.touch()
    assert not start.failed(REFUSED, roles_may_live=False)
    assert RunDirectory(Path("runs/refused")).holds_run
    assert run_directory.find_run(None).path == earlier.path.resolve()


def test_a_resume_that_fails_keeps_the_settings_and_the_data_of_before(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    start = begin(run.path, "resume")
    assert run.config.read_text() == "env = 'door'\n"
    assert not start.failed(REFUSED, roles_may_live=False)
    assert run.config.read_text() == "env = 'pen'\n"
    assert run.connection.exists()


def test_a_resume_that_is_stopped_keeps_the_settings_that_it_was_given(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert not begin(run.path, "resume").stopped()
    assert run.config.read_text() == "env = 'door'\n"


def test_a_folder_that_a_user_made_and_what_else_is_in_it_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    start = begin(tmp_path / "mine", None)
    (tmp_path / "mine" / "notes.txt").write_text("x")
    assert start.failed(REFUSED, roles_may_live=False)
    assert names(tmp_path / "mine") == ["notes.txt"]


def test_what_somebody_put_there_meanwhile_stays_and_the_run_before_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    start = begin(run.path, "restart")
    (run.path / "notes.txt").write_text("x")
    assert start.failed(REFUSED, roles_may_live=False)
    assert names(run.path) == ["notes.txt"]
    told = capsys.readouterr().err
    assert f"cannot clear {run.path}: Directory not empty" in told
    assert f"is kept, whole, as {tmp_path / 'run.1'}" in told


UP = ("--env", "pen", "--dataset", "none", "--actors", "1", "--restart-behavior", "overwrite")


@pytest.mark.slow
def test_a_start_on_a_full_disk_is_told_in_a_sentence_and_the_old_run_has_its_place_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        run = make_run(disk / "run")
        fill(disk)
        command = [sys.executable, "-m", "launcher", "up", "--run-dir", str(run.path), *UP]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert done.stderr.endswith(f"error: cannot write the run directory {run.path}: No space left on device\n")
        assert run.config.read_text() == "env = 'pen'\n"
        assert names(disk) == ["filler", "run"]


@pytest.mark.slow
def test_a_ray_that_does_not_start_is_told_in_a_sentence_and_the_old_run_has_its_place_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    run = make_run(tmp_path / "run")
    command = [sys.executable, "-m", "launcher", "up", "--run-dir", str(run.path), *UP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "error: Ray did not start on this machine (" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "go on with" not in done.stdout
    assert run.config.read_text() == "env = 'pen'\n"
    assert names(tmp_path) == ["run"]
