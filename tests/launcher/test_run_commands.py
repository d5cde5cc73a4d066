"""The commands about one run, where the run, its files or the terminal are not as they should be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher import cli
from launcher.run_directory import RunDirectory
from replay_service.data_lock import is_served
from tests.faults import bound_by_modes
from tests.launcher.made_run import service_at_work

NOBODY = 65_534


@pytest.fixture
def stopped(tmp_path: Path) -> RunDirectory:
    """A run that ended, in a folder whose name rich would take for markup."""
    run = RunDirectory(tmp_path / "pen [red] it's")
    run.logs.mkdir(parents=True)
    run.config.write_text('env = "pen"\n', encoding="utf-8")
    run.lock.touch()
    run.launcher_log.touch()
    run.summary.write_text(json.dumps({"status": "finished", "env_steps": 7}), encoding="utf-8")
    return run


@contextmanager
def roles_without_launcher(run: RunDirectory) -> Iterator[None]:
    """A run that was started without a launcher, as in containers."""
    run.launcher_log.unlink()
    run.lock.unlink()
    run.summary.write_text(json.dumps({"status": "running", "env_steps": 7}), encoding="utf-8")
    with service_at_work(run):
        yield


COMMANDS_THAT_NEED_A_LAUNCHER = {
    "down": ["down"],
    "scale": ["scale", "--actors", "3"],
    "watch": ["watch"],
    "attach": ["attach"],
}


def launcher(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        capture_output=True, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


class TestStatus:
    def test_a_name_with_brackets_is_no_markup(self, stopped: RunDirectory, capfd: pytest.CaptureFixture[str]) -> None:
        stopped.summary.unlink()
        assert cli.main(["status", str(stopped.path)]) == 0
        assert capfd.readouterr().out == f"{stopped.path}: not running, and it has no summary yet\n"
        with stopped.held():
            assert cli.main(["status", str(stopped.path)]) == 0
        assert capfd.readouterr().out.startswith(f"{stopped.path}: launcher process {os.getpid()} holds it")

    @pytest.mark.parametrize(
        ("text", "what"), [("", "cannot be read"), ("{", "cannot be read"), ("[]", "no JSON object")]
    )
    def test_a_damaged_summary_is_told(
        self, text: str, what: str, stopped: RunDirectory, capfd: pytest.CaptureFixture[str]
    ) -> None:
        stopped.summary.write_text(text, encoding="utf-8")
        assert cli.main(["status", str(stopped.path)]) == 2
        err = capfd.readouterr().err
        assert err.startswith(f"error: {stopped.path}: not running, and its summary.json ")
        assert what in err

    def test_a_summary_that_lacks_its_status_is_shown(
        self, stopped: RunDirectory, capfd: pytest.CaptureFixture[str]
    ) -> None:
        stopped.summary.write_text('{"env_steps": 7}', encoding="utf-8")
        assert cli.main(["status", str(stopped.path)]) == 0
        assert capfd.readouterr().out.split() == ["env_steps", "7"]

    def test_a_run_in_containers_is_not_called_interrupted(
        self, stopped: RunDirectory, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with roles_without_launcher(stopped):
            assert cli.main(["status", str(stopped.path)]) == 0
        assert "status  running (no launcher here; its roles are up)\n" in capfd.readouterr().out
        assert cli.main(["status", str(stopped.path)]) == 0
        assert "interrupted (no launcher here, and its replay service is gone)" in capfd.readouterr().out
        with stopped.held(reads=True):
            pass  # a command that has read it makes it no launcher's
        assert cli.main(["status", str(stopped.path)]) == 0
        assert "interrupted (no launcher here, and its replay service is gone)" in capfd.readouterr().out
        stopped.launcher_log.touch()
        assert cli.main(["status", str(stopped.path)]) == 0
        assert "interrupted (its launcher is gone; resume it)" in capfd.readouterr().out

    def test_a_run_whose_roles_cannot_be_seen_still_shows_its_records(self, stopped: RunDirectory) -> None:
        with roles_without_launcher(stopped):
            stopped.connection.parent.chmod(0)
            look = [*bound_by_modes(), sys.executable, "-m", "launcher", "status", str(stopped.path)]
            done = subprocess.run(look, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert "status  running or interrupted (no launcher here, and its roles cannot be seen by you)\n" in done.stdout
        assert "env_steps  7\n" in done.stdout

    def test_a_run_that_is_read_is_not_running(self, stopped: RunDirectory, capfd: pytest.CaptureFixture[str]) -> None:
        with stopped.held(reads=True):
            assert cli.main(["status", str(stopped.path)]) == 0
            told = f"{stopped.path}: not running (the command with process id {os.getpid()} reads its data)"
            out = capfd.readouterr().out
            assert out.splitlines()[0] == told
            assert "status  finished" in out
            stopped.summary.unlink()
            assert cli.main(["status", str(stopped.path)]) == 0
            assert capfd.readouterr().out == f"{told}, and it has no summary yet\n"


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("down", "stop them where they were started, those in containers by `docker compose stop`"),
        ("scale", "`docker compose up --scale actor=3`"),
        ("watch", "`launcher status "),
        ("attach", "`launcher status "),
    ],
)
def test_roles_without_a_launcher_are_not_called_down(
    command: str,
    remedy: str,
    stopped: RunDirectory,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = COMMANDS_THAT_NEED_A_LAUNCHER[command]
    with roles_without_launcher(stopped):
        assert cli.main([words[0], str(stopped.path), *words[1:]]) == 2
    (line,) = capfd.readouterr().err.splitlines()  # and nobody waits for their end
    assert line.startswith(f"error: {stopped.path} has no launcher here, and its roles are up: ")
    assert remedy in line


@pytest.mark.parametrize(("command", "code"), [("down", 0), ("scale", 2), ("watch", 2), ("attach", 2)])
def test_roles_that_end_because_their_launcher_was_killed_are_not_called_anybody_elses(
    command: str,
    code: int,
    stopped: RunDirectory,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = COMMANDS_THAT_NEED_A_LAUNCHER[command]
    with service_at_work(stopped) as service:

        def killed_meanwhile(folder: Path, name: str, *, for_s: float = 0.0) -> bool:
            if for_s > 0:
                threading.Timer(0.3, service.kill).start()
            return is_served(folder, name, for_s=for_s)

        monkeypatch.setattr("launcher.run_directory.is_served", killed_meanwhile)
        assert cli.main([words[0], str(stopped.path), *words[1:]]) == code
    out, err = capfd.readouterr()
    assert f"{stopped.path} is not running" in out + err
    assert err.startswith(f"a replay service still runs on {stopped.path}: waiting for its end\n")


@pytest.mark.parametrize(("command", "code"), [("down", 0), ("scale", 2), ("watch", 2), ("attach", 2)])
def test_a_command_that_reads_a_stopped_run_is_neither_asked_nor_signalled(
    command: str, code: int, stopped: RunDirectory, capfd: pytest.CaptureFixture[str]
) -> None:
    words = COMMANDS_THAT_NEED_A_LAUNCHER[command]
    with stopped.held(reads=True):
        assert cli.main([words[0], str(stopped.path), *words[1:]]) == code  # and this very process was not ended
    out, err = capfd.readouterr()
    assert f"is not running (the command with process id {os.getpid()} reads its data)" in out + err
    assert "stopp" not in out


@pytest.mark.parametrize("options", [[], ["--role", "learner"]])
def test_a_run_without_logs_is_told_so(
    options: list[str], stopped: RunDirectory, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped.launcher_log.unlink()
    assert cli.main(["logs", str(stopped.path), *options]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"error: {stopped.path} has no logs yet: its roles write them to {stopped.logs} ")
    assert "--role" not in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_logs_show_what_a_terminal_can(encoding: str, stopped: RunDirectory) -> None:
    (stopped.logs / "learner.log").write_bytes("a café, \N{SNOWMAN}, ".encode() + b"\xff end\n")
    done = launcher("logs", str(stopped.path), PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    cafe = b"caf?" if encoding == "ascii" else b"caf\xe9"
    assert done.stdout.splitlines()[-1] == b"a " + cafe + b", ?, ? end"


def test_a_command_to_copy_is_quoted(stopped: RunDirectory, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scale", str(stopped.path), "--actors", "3"]) == 2
    told = capfd.readouterr().err.partition("launcher up ")[2]
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {told}"], capture_output=True, text=True).stdout.splitlines()
    assert words == ["--run-dir", str(stopped.path), "--restart-behavior", "resume", "--actors", "3"]


class TestDown:
    """Redis cannot be asked, as no `ready` file is there: the launcher is asked by signal."""

    def name_holder(self, run: RunDirectory, pid: int) -> None:
        holder = json.loads(run.lock.read_text(encoding="utf-8"))
        run.lock.write_text(json.dumps({**holder, "pid": pid}), encoding="utf-8")

    def test_a_launcher_that_has_just_ended_is_waited_for(self, stopped: RunDirectory) -> None:
        ended = subprocess.Popen(["true"])
        ended.wait()
        with stopped.held():
            self.name_holder(stopped, ended.pid)
            asking = subprocess.Popen(
                [sys.executable, "-u", "-m", "launcher", "down", str(stopped.path)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert asking.stdout is not None
            assert asking.stdout.readline() == f"stopping {stopped.path} ...\n", asking.communicate()[1]
        out, err = asking.communicate(timeout=120)
        assert (asking.returncode, out) == (0, "stopped\n"), err
        assert "Traceback" not in err

    @pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
    @pytest.mark.skipif(os.geteuid() != 0, reason="starting a process of another user needs root")
    def test_a_launcher_of_another_user_is_told(self, stopped: RunDirectory) -> None:
        other = subprocess.Popen(["sleep", "300"], user=NOBODY)
        try:
            with stopped.held():
                self.name_holder(stopped, other.pid)
                done = subprocess.run(
                    ["setpriv", "--bounding-set=-kill", sys.executable, "-m", "launcher", "down", str(stopped.path)],
                    capture_output=True, text=True, timeout=120,
                )  # fmt: skip
            assert done.returncode == 2, done.stderr
            expected = f"error: {stopped.path} is run by process {other.pid}, which belongs to another user: "
            assert done.stderr.splitlines()[-1].startswith(expected)
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()
