"""The run directory: holding, resuming, moving aside, deleting; and never anything that is not a run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from launcher import cli, run_directory
from launcher.run_directory import RunDirectory, RunDirectoryInUse
from launcher.run_preparation import RestartBehavior, await_free, prepare
from replay_service import data_lock
from replay_service.errors import RunDirectoryError
from tests.faults import bound_by_modes, fill, read_only_view, small_disk
from tests.launcher.made_run import service_at_work


def make_run(path: Path) -> RunDirectory:
    run = prepare(path, None).run
    run.config.write_text("env = 'pen'\n")
    run.lock.touch()
    run.launcher_log.touch()
    return run


def test_a_new_directory_is_made_with_a_folder_for_logs(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "a" / "b", None)
    run, resumes = prepared.run, prepared.resumes
    assert run.logs.is_dir()
    assert not resumes


def test_a_directory_with_a_run_is_refused_and_the_ways_out_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=r"resume .* restart .* overwrite"):
        prepare(tmp_path / "run", None)


def test_resume_keeps_what_is_there(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    prepared = prepare(tmp_path / "run", "resume")
    run, resumes = prepared.run, prepared.resumes
    assert resumes
    assert run.holds_run


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run to resume"):
        prepare(tmp_path / "nothing", "resume")


def test_restart_keeps_the_old_run_aside(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    prepared = prepare(tmp_path / "run", "restart")
    run, resumes = prepared.run, prepared.resumes
    assert not resumes
    assert not run.holds_run
    assert RunDirectory(tmp_path / "run.1").holds_run


def test_a_second_restart_finds_another_name(tmp_path: Path) -> None:
    for _ in range(2):
        make_run(tmp_path / "run")
        prepare(tmp_path / "run", "restart")
        (tmp_path / "run" / "logs").rmdir()
        (tmp_path / "run").rmdir()
    assert RunDirectory(tmp_path / "run.1").holds_run
    assert RunDirectory(tmp_path / "run.2").holds_run


def test_overwrite_deletes_the_old_run_once_the_new_one_has_begun(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.path / "evaluations.csv").write_text("x")
    prepared = prepare(tmp_path / "run", "overwrite")
    assert sorted(path.name for path in run.path.iterdir()) == ["logs"]
    assert (tmp_path / "run.1" / "evaluations.csv").exists()
    prepared.begun()
    assert not (tmp_path / "run.1").exists()


@pytest.mark.parametrize("behavior", [None, "restart", "overwrite"])
def test_a_directory_that_holds_something_else_is_never_touched(
    tmp_path: Path, behavior: RestartBehavior | None
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="something else than a run"):
        prepare(tmp_path, behavior)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_unwritable_place_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write the run directory"):
        prepare(tmp_path / "file" / "run", None)
    await_free(tmp_path / ("x" * 300), "resume")
    with pytest.raises(RunDirectoryError, match="File name too long"):
        prepare(tmp_path / ("x" * 300), "resume")


@pytest.fixture
def no_wait_for_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses a lock that is held at once: for tests in which nobody only looks at it."""
    monkeypatch.setattr(data_lock, "_LOOKS_S", 0.0)


HOLD = """
import sys, time
from pathlib import Path
from launcher.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.usefixtures("no_wait_for_looks")
def test_a_directory_is_held_by_one_process_and_free_when_that_process_is_killed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        found = run.holder()
        assert found is not None
        assert found["pid"] == holder.pid
        for behavior in ("resume", "restart", "overwrite"):
            with pytest.raises(RunDirectoryError, match=f"in use by the launcher with process id {holder.pid}"):
                prepare(run.path, behavior)
        holder.kill()
    assert run.holder() is None
    with run.held():
        pass


PATIENT = """
import sys
from launcher import cli, run_directory
run_directory._LAST_ROLES_TIMEOUT_S = 3600.0
sys.exit(cli.main(sys.argv[1:]))
"""

START = """
import sys
from contextlib import ExitStack
from pathlib import Path
from launcher.run_preparation import prepare
from replay_service import data_lock
from replay_service.errors import RunDirectoryError
data_lock._LOOKS_S = 6.0  # a test that is held up releases its lock in time all the same
print("ready", flush=True)
sys.stdin.readline()
try:
    prepared = prepare(Path(sys.argv[1]), sys.argv[2])
    with ExitStack() as stack:
        hold = stack.enter_context(prepared.hold)
        if not prepared.resumes:
            stack.enter_context(prepared.run.held())
            hold.close()
            prepared.run.write_config("env = 'door'\\n")
        print("took", prepared.run.config.read_text(), end="", flush=True)
        sys.stdin.readline()
except RunDirectoryError as error:
    print("refused:", error, flush=True)
"""


@pytest.mark.parametrize("behaviors", [("restart", "restart"), ("resume", "restart"), ("overwrite", "resume"),
                                       ("resume", "resume")])  # fmt: skip
def test_of_two_starts_that_wait_for_one_run_one_takes_it(behaviors: tuple[str, str], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with ExitStack() as stack:
        with run.held(reads=True):
            starts = [
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", START, str(run.path), behavior],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                    )
                )
                for behavior in behaviors
            ]  # fmt: skip
            assert [start.stdout.readline() for start in starts if start.stdout is not None] == ["ready\n"] * 2
            for start in starts:
                assert start.stdin is not None
                start.stdin.write("\n")
                start.stdin.flush()
            time.sleep(0.5)  # most likely both wait for the lock now; what is asserted holds in any case
        said = [start.stdout.readline() for start in starts if start.stdout is not None]
        (winner,) = (index for index, line in enumerate(said) if line.startswith("took"))
        assert said[winner] == ("took env = 'pen'\n" if behaviors[winner] == "resume" else "took env = 'door'\n")
        assert said[1 - winner].startswith("refused:")
        for start in starts:
            start.communicate("\n")
            assert start.returncode == 0
    moved = [] if behaviors[winner] == "resume" else ["run.1"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run", *moved]
    for name in moved:
        assert (tmp_path / name / "config.toml").read_text() == "env = 'pen'\n"


@pytest.mark.parametrize("behavior", ["resume", "restart", "overwrite"])
@pytest.mark.parametrize("has_folder", [False, True])
def test_a_start_a_moment_after_another_one_takes_nothing(
    behavior: RestartBehavior, has_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    hold = RunDirectory.held

    def hold_too_late(directory: RunDirectory) -> AbstractContextManager[None]:
        run.path.rename(tmp_path / "run.1")
        if has_folder:
            run.logs.mkdir(parents=True)
        return hold(directory)

    monkeypatch.setattr(RunDirectory, "held", hold_too_late)
    with pytest.raises(RunDirectoryInUse, match="another start has taken"):
        prepare(run.path, behavior)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == (["run", "run.1"] if has_folder else ["run.1"])
    assert RunDirectory(tmp_path / "run.1").holds_run


def test_who_loses_the_place_of_a_run_is_told_where_that_one_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    hold = RunDirectory.held

    def lose_place(directory: RunDirectory) -> AbstractContextManager[None]:
        if directory.holds_run:
            return hold(directory)
        raise directory.taken()

    monkeypatch.setattr(RunDirectory, "held", lose_place)
    options = ["--env", "Pendulum-v1", "--dataset", "none", "--run-dir", str(run.path), "--restart-behavior", "restart"]
    assert cli.main(["up", *options]) == 2
    err = capfd.readouterr().err
    assert f"the run that was in {run.path} before is kept, whole, as {tmp_path / 'run.1'}\n" in err
    assert f"error: another start has taken {run.path} just now" in err


def test_latest_points_to_the_newest_run_below_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirectoryError, match="no run was started"):
        run_directory.find_run(None)
    for name in ("first", "second"):
        run = make_run(run_directory.RUNS_DIR / name)
        run_directory.remember_latest(run.path)
    assert run_directory.find_run(None).path.name == "second"


def test_a_folder_without_a_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds no run"):
        run_directory.find_run(tmp_path)


def test_a_nodes_part_of_a_run_is_told_from_the_run(tmp_path: Path) -> None:
    part = RunDirectory(tmp_path / "run")
    part.path.mkdir()
    part.config.write_text("")
    with pytest.raises(RunDirectoryError, match="this machine's part of a run"):
        run_directory.find_run(part.path)
    assert run_directory.find_run(part.path, also_part=True) == part


def test_a_folder_in_the_place_of_the_link_to_the_latest_run_hinders_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (run_directory.RUNS_DIR / "latest").mkdir(parents=True)
    run = make_run(run_directory.RUNS_DIR / "pen")
    run_directory.remember_latest(run.path)
    assert run_directory.linked_run() is None
    told = capsys.readouterr().err
    assert told.startswith("warning: runs/latest cannot be made to name runs/pen: ")
    assert sorted(path.name for path in run_directory.RUNS_DIR.iterdir()) == ["latest", "pen"]


def test_the_name_of_that_link_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    latest = run_directory.RUNS_DIR / "latest"
    with pytest.raises(RunDirectoryError, match="runs/latest is not there"):
        run_directory.chosen_path(latest)
    latest.mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match=r"runs/latest is a folder, .*rename it"):
        run_directory.chosen_path(tmp_path / "runs" / ".." / "runs" / "latest")
    assert run_directory.chosen_path(tmp_path / "latest") == tmp_path / "latest"  # elsewhere it is a name like others
    latest.rmdir()
    run = make_run(run_directory.RUNS_DIR / "pen")
    run_directory.remember_latest(run.path)
    assert run_directory.chosen_path(latest) == run.path.resolve()


def test_a_run_that_cannot_be_replaced_stays_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    make = Path.mkdir

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "logs":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunDirectoryError, match="No space left"):
        prepare(run.path, "overwrite")
    assert run.holds_run
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_configuration_that_finds_no_room_leaves_the_old_one_and_no_half_one(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        run = RunDirectory(disk)
        run.write_config("env = 'pen'\n")
        fill(disk)
        with pytest.raises(OSError, match="No space left"):
            run.write_config("env = 'door'\n" * 10_000)
        assert run.config.read_text() == "env = 'pen'\n"
        assert not run.config.with_suffix(".partial").exists()


@pytest.mark.usefixtures("no_wait_for_looks")
def test_the_way_to_stop_a_run_that_is_in_use_can_be_copied(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my run")
    with run.held(), pytest.raises(RunDirectoryInUse, match=f"`launcher down '{run.path}'`"), run.held():
        pass


@pytest.mark.usefixtures("no_wait_for_looks")
@pytest.mark.parametrize("behavior", ["resume", "restart", "overwrite"])
def test_a_command_that_reads_a_stopped_run_is_no_launcher(tmp_path: Path, behavior: RestartBehavior) -> None:
    run = make_run(tmp_path / "run")
    with run.held(reads=True):
        assert run.holder() is None
        reader = run.reader()
        assert reader is not None
        assert reader["pid"] == os.getpid()
        told = f"not running, but a command with process id {os.getpid()} on .* reads its data: try again"
        with pytest.raises(RunDirectoryInUse, match=told):
            prepare(run.path, behavior)
    assert run.reader() is None


def test_a_lock_that_names_no_purpose_is_a_launchers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with run.held(reads=True):
        run.lock.write_text(json.dumps({"pid": 1, "host": "here"}))
        assert run.holder() == {"pid": 1, "host": "here"}
        assert run.reader() is None


def test_a_look_at_the_lock_keeps_nobody_from_holding_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    looks = run.lock.open("r")
    fcntl.flock(looks, fcntl.LOCK_SH)
    looked = threading.Timer(0.05, looks.close)
    looked.start()
    with run.held():
        assert looks.closed
    looked.join()


class TestRolesWithoutALauncher:
    """A replay service runs, and no launcher holds the directory."""

    def test_they_are_up_as_long_as_it_lives(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        with service_at_work(run):
            assert run.has_roles()
            assert run.has_roles(for_s=0.1)
        assert not run.has_roles()

    @pytest.mark.parametrize("behavior", ["resume", "restart", "overwrite"])
    def test_their_run_is_not_taken(
        self,
        behavior: RestartBehavior,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(run_directory, "_LAST_ROLES_TIMEOUT_S", 0.2)
        run = make_run(tmp_path / "run")
        with service_at_work(run):
            run.ready.touch()
            await_free(run.path, behavior)
            with pytest.raises(RunDirectoryError, match="its roles are up: end them first"):
                prepare(run.path, behavior)
        assert run.ready.exists()
        assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
        assert capfd.readouterr().err == f"a replay service still runs on {run.path}: waiting for its end\n"

    def test_those_that_never_had_one_are_not_waited_for(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run(tmp_path / "run")
        run.launcher_log.unlink()
        with service_at_work(run):
            await_free(run.path, "resume")
            with pytest.raises(RunDirectoryError, match="its roles are up: end them first"):
                prepare(run.path, "resume")
        assert capfd.readouterr().err == ""

    def test_those_of_a_launcher_that_was_killed_are_waited_for(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        with service_at_work(run) as service:
            end = threading.Timer(0.3, service.kill)
            end.start()
            await_free(run.path, "resume")
            assert not run.has_roles()
            assert prepare(run.path, "resume").resumes
            end.join()

    def test_a_ctrl_c_ends_the_wait(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        options = ["up", "--env", "Pendulum-v1", "--dataset", "none", "--run-dir", str(run.path)]
        with service_at_work(run):
            start = subprocess.Popen(
                [sys.executable, "-c", PATIENT, *options, "--restart-behavior", "restart"],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert start.stderr is not None
            while (line := start.stderr.readline()) and "waiting for its end" not in line:
                pass
            start.send_signal(signal.SIGINT)
            _, err = start.communicate(timeout=120)
        assert start.returncode == 130, err
        assert [entry.name for entry in tmp_path.iterdir()] == ["run"]

    @pytest.mark.parametrize("behavior", [None, "resume"])
    def test_nobody_waits_where_the_start_is_refused_anyway(
        self, behavior: RestartBehavior | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run(tmp_path / "run")
        with service_at_work(run), run.held() if behavior else nullcontext():
            await_free(run.path, behavior)
        assert capfd.readouterr().err == ""

    def test_they_are_seen_where_nothing_can_be_written(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        with service_at_work(run), read_only_view(run.path, tmp_path / "view") as view:
            assert RunDirectory(view).has_roles()
        assert not run.has_roles()

    def test_where_they_cannot_be_seen_nobody_says_that_they_are_gone(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        with service_at_work(run):
            run.connection.parent.chmod(0)
            look = [*bound_by_modes(), sys.executable, "-m", "launcher", "down", str(run.path)]
            done = subprocess.run(look, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"error: cannot see whether the roles of {run.path} are up: " in done.stderr
        assert "Permission denied; give the command as the user who started them" in done.stderr

    def test_a_disk_that_fails_is_not_told_as_another_users(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> bool:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(run_directory, "is_served", fail)
        with pytest.raises(RunDirectoryError, match=r"Input/output error$"):
            RunDirectory(tmp_path).has_roles()

    def test_a_look_leaves_no_lock_in_a_run_that_never_had_a_service(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        assert not run.has_roles()
        run.ready.parent.mkdir()
        assert not run.has_roles()
        assert list(run.ready.parent.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    run = make_run(tmp_path / "run")
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunDirectoryError, match=r"has no locks .* choose another --run-dir"), run.held():
        pass


@pytest.mark.parametrize("spelled", ["", ".", "../run/../run", "../run/logs/.."])
def test_the_folder_that_the_user_is_in_has_a_name(
    spelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.chdir(run.path)
    path = run_directory.chosen_path(Path(spelled))
    assert path.resolve() == run.path
    assert path.name == "run"
    with pytest.raises(RunDirectoryError, match="would be deleted, and is the folder that you are in"):
        prepare(path, "overwrite")
    assert run.holds_run
    aside = prepare(path, "restart").aside
    assert aside is not None
    assert aside.resolve() == tmp_path / "run.1"


@pytest.mark.parametrize("behavior", [None, "resume", "restart", "overwrite"])
def test_a_nodes_part_of_a_run_is_never_taken_for_a_run(tmp_path: Path, behavior: RestartBehavior | None) -> None:
    part = RunDirectory(tmp_path / "run")
    part.checkpoints.mkdir(parents=True)
    part.config.write_text("")
    with pytest.raises(RunDirectoryError, match="this machine's part of a run"):
        prepare(part.path, behavior)
    assert part.checkpoints.is_dir()
    assert not part.lock.exists()
