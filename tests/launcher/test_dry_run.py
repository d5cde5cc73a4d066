"""`launcher up --dry-run` refuses what the start would refuse, and leaves the disk as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher import cli
from launcher.dry_run import refuse_start
from launcher.experiment import ExperimentConfig
from launcher.run_directory import RunDirectory
from launcher.run_preparation import RestartBehavior, prepare
from replay_service.config import RunConfig
from replay_service.errors import RunDirectoryError
from tests.faults import bound_by_modes, small_disk

SMALL = ("up", "--dry-run", "--env", "pen", "--dataset", "none")


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file below a folder was changed, and what is in it; a folder has nothing in it."""
    found = {}
    for path in folder.rglob("*"):
        found[str(path)] = (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> RunDirectory:
    """A run of pen that has ended, as far as its directory goes."""
    assert cli.main([*SMALL, "--num-env-steps", "5000"]) == 0
    made = RunDirectory(tmp_path / "run")
    made.path.mkdir()
    made.config.write_text(capfd.readouterr().out, encoding="utf-8")
    made.lock.touch()
    return made


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Called once all is there: what lies in the test's folder is the same at its end."""
    before: list[dict[str, tuple[int, bytes]]] = []
    yield lambda: before.append(contents(tmp_path))
    assert [contents(tmp_path)] == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--restart-behavior", "resume", "--seed", "7"), "a run that is resumed keeps its seed (seed: 0, now 7)"),
        ((), "holds a run already: add --restart-behavior resume"),
        (("--restart-behavior", "overwrite", "--replay.server-path", "/nonexist"), "'/nonexist' is not an executable"),
        (("--restart-behavior", "restart", "--launcher.actor-cpus", "inf"), "launcher.actor_cpus: expected a finite"),
    ],
)
def test_what_the_start_would_refuse_is_refused(
    options: tuple[str, ...], words: str, run: RunDirectory, untouched: Callable[[], None],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    untouched()
    assert cli.main([*SMALL, "--run-dir", str(run.path), *options]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err


@pytest.mark.parametrize("options", [("resume", "--num-env-steps", "9000"), ("restart",), ("overwrite", "--seed", "7")])
def test_what_the_start_takes_is_printed(
    options: tuple[str, ...], run: RunDirectory, untouched: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    untouched()
    assert cli.main([*SMALL, "--run-dir", str(run.path), "--restart-behavior", *options]) == 0
    assert 'env = "pen"\n' in capfd.readouterr().out


@pytest.mark.parametrize("reads", [False, True])
def test_a_run_that_is_up_or_read_is_not_started_again(
    reads: bool, run: RunDirectory, untouched: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    with run.held(reads=reads):
        pid = json.loads(run.lock.read_text(encoding="utf-8"))["pid"]
        untouched()
        assert cli.main([*SMALL, "--run-dir", str(run.path), "--restart-behavior", "resume"]) == 2
    assert f"is in use by process {pid} on " in capfd.readouterr().err


def test_the_folder_that_one_is_in_is_not_to_be_deleted(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.path)
    assert cli.main([*SMALL, "--run-dir", ".", "--restart-behavior", "overwrite"]) == 2
    assert "is the folder that you are in" in capfd.readouterr().err


def make_nothing(_path: Path) -> None:
    pass


def make_part(path: Path) -> None:
    """What another node than the launcher's keeps of a run."""
    path.mkdir()
    (path / "config.toml").touch()


def make_run(path: Path) -> None:
    make_part(path)
    (path / "launcher.lock").touch()


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").touch()


@pytest.mark.parametrize(
    ("make", "behavior"),
    [
        (make_run, None),
        (make_part, "overwrite"),
        (make_folder, None),
        (make_folder, "resume"),
        (Path.touch, "restart"),
        (make_nothing, "resume"),
    ],
)
def test_the_words_are_those_of_the_start(
    make: Callable[[Path], object], behavior: RestartBehavior | None, tmp_path: Path, untouched: Callable[[], None]
) -> None:
    path = tmp_path / "run"
    make(path)
    untouched()
    with pytest.raises(RunDirectoryError) as start:
        prepare(path, behavior)
    with pytest.raises(RunDirectoryError) as dry:
        refuse_start(ExperimentConfig(run=RunConfig(env="pen")), path, behavior)
    assert str(dry.value) == str(start.value)


@pytest.mark.parametrize("behavior", [None, "restart", "overwrite"])
def test_a_directory_that_is_not_there_yet_is_not_made(
    behavior: RestartBehavior | None, tmp_path: Path, untouched: Callable[[], None]
) -> None:
    untouched()
    refuse_start(ExperimentConfig(run=RunConfig(env="pen")), tmp_path / "new" / "run", behavior)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        make_run(disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        starts: list[tuple[Path, RestartBehavior | None]] = [(disk / "new" / "run", None), (disk / "run", "restart")]
        for path, behavior in starts:
            with pytest.raises(RunDirectoryError, match=r"cannot write the run directory .* is not writable for you"):
                refuse_start(ExperimentConfig(run=RunConfig(env="pen")), path, behavior)
            with pytest.raises(RunDirectoryError, match="Read-only file system"):
                prepare(path, behavior)
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="file is not a directory"):
        refuse_start(ExperimentConfig(run=RunConfig(env="pen")), tmp_path / "file" / "run", None)


@pytest.mark.parametrize(("behavior", "code"), [("resume", 0), ("restart", 2), ("overwrite", 2)])
def test_a_folder_in_which_the_run_cannot_be_moved_aside_is_refused(
    behavior: str, code: int, tmp_path: Path, run: RunDirectory
) -> None:
    tmp_path.chmod(0o500)
    try:
        done = subprocess.run(
            [*bound_by_modes(), sys.executable, "-m", "launcher", *SMALL, "--num-env-steps", "5000",
             "--run-dir", str(run.path), "--restart-behavior", behavior],
            capture_output=True, text=True, timeout=120, cwd=run.path.parent,
        )  # fmt: skip
    finally:
        tmp_path.chmod(0o700)
    assert done.returncode == code, done.stderr
    assert (f"cannot write the run directory {tmp_path}: {tmp_path} is not writable for you" in done.stderr) == (
        code == 2
    )
