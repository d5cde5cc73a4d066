"""Going on without a terminal, with real processes: the one in the terminal learns how the start went."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.detached import detach
from launcher.run_directory import RunDirectory
from replay_service.errors import UserError

PROGRAM = """
import shutil, sys, time
from pathlib import Path
from launcher.detached import detach
from launcher.run_directory import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
with run.held():
    aside = run.path.with_name('my run.1')
    waiting = detach(run, aside)
    if isinstance(waiting, int):
        sys.exit(waiting)
    print("a word of the child's", flush=True)
    exec(sys.argv[2])
"""


def start(run: Path, child: str) -> subprocess.CompletedProcess[str]:
    """A program that detaches itself, and what its child then does; returns when the one in the terminal does."""
    return subprocess.run([sys.executable, "-c", PROGRAM, str(run), child], capture_output=True, text=True, timeout=120)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = tmp_path / "my run"
    made.mkdir()
    return made


def test_the_one_in_the_terminal_leaves_once_it_is_told(run: Path) -> None:
    done = start(run, "waiting.tell(); waiting.tell(); sys.exit(7)")
    assert done.returncode == 0
    assert f"see it with: launcher attach '{run}'\nstop it with: launcher down '{run}'\n" in done.stdout
    assert (run / "logs" / "launcher.out").read_text() == "a word of the child's\n"


def test_a_machine_that_starts_no_further_process_is_not_told_as_a_full_disk(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match=r"starts none .Resource temporarily unavailable"):
        detach(RunDirectory(run), None)
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_file_of_the_run_is_no_sign_of_it(run: Path) -> None:
    done = start(run, "run.ready.parent.mkdir(); run.ready.touch(); sys.exit(2)")
    assert done.returncode == 2
    assert "goes on without" not in done.stdout


def test_what_the_child_said_is_shown_also_when_it_has_taken_its_start_back(run: Path) -> None:
    done = start(run, "shutil.rmtree(run.path); print('error: the port is taken', file=sys.stderr); sys.exit(2)")
    assert done.returncode == 2
    assert done.stderr == "a word of the child's\nerror: the port is taken\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN + 1])
def test_of_a_child_that_a_signal_ends_it_is_told_what_happened_and_how_to_go_on(run: Path, number: int) -> None:
    (run / "config.toml").touch()
    done = start(run, f"import os; os.kill(os.getpid(), {int(number)}); time.sleep(60)")
    assert done.returncode == 1
    name = {9: "SIGKILL", 15: "SIGTERM"}.get(number, "unnamed")
    assert done.stderr == (
        "a word of the child's\n"
        f"error: {run} was ended by signal {int(number)} ({name}) before it was up; its logs are in {run / 'logs'}\n"
        f"go on with: launcher up --run-dir '{run}' --restart-behavior resume\n"
    )
    assert "goes on without" not in done.stdout


def test_of_a_child_that_a_signal_ends_the_run_that_was_moved_aside_is_named(run: Path) -> None:
    run.with_name("my run.1").mkdir()
    done = start(run, "import os; os.kill(os.getpid(), 9); time.sleep(60)")
    assert done.stderr.endswith(f"\nthe run that was in {run} before is kept, whole, as {run}.1\n")


def test_a_run_that_is_not_there_any_more_is_not_named_to_be_gone_on_with(run: Path) -> None:
    done = start(run, "import os; os.kill(os.getpid(), 9); time.sleep(60)")
    assert done.returncode == 1
    assert "(SIGKILL)" in done.stderr
    assert "go on with" not in done.stderr


def test_a_child_that_is_told_to_end_before_it_is_up_ends_the_wait(run: Path) -> None:
    done = start(run, "sys.exit(0)")
    assert done.returncode == 0
    assert "goes on without" not in done.stdout


def test_the_reader_of_the_terminal_may_be_gone(run: Path) -> None:
    # A start whose words nobody reads is the child's all the same: who gets an error here would take it back.
    nobody, writes = os.pipe()
    os.close(nobody)
    # Not by sys.exit: some interpreters make 120 of any code when what nobody reads cannot be flushed at the end.
    program = PROGRAM.replace("sys.exit(waiting)", "import os; os._exit(40 + waiting)")
    done = subprocess.run(
        [sys.executable, "-c", program, str(run), "sys.exit(0)"], stdout=writes, stderr=subprocess.DEVNULL, timeout=120
    )
    os.close(writes)
    assert done.returncode == 41


def test_a_log_folder_that_cannot_be_made_is_told_before_anything_is_forked(run: Path) -> None:
    (run / "logs").touch()
    with pytest.raises(FileExistsError):
        detach(RunDirectory(run), None)
