"""`launcher up` that comes to nothing: a run that it was to overwrite is there as before, or kept and named.

With real roles, without Ray; `tests/system/test_refused_starts.py` does the same with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from launcher import cli
from launcher.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_DEADLINE_S = 200.0
_REPOSITORY = Path(__file__).parents[2]
SMALL = ("--env", "pen", "--dataset", "none", "--actors", "1", "--num-env-steps", "100000", "--learner.threads", "1")
without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the learner takes a device of this machine")


class Up:
    """One `launcher up` in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.run = RunDirectory(folder / "runs" / "pen")
        self.output_path = folder / "output"
        words = ("up", "--run-dir", str(self.run.path), *SMALL, *options)
        with self.output_path.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.launcher.without_ray", *words],
                cwd=folder, env={**os.environ, "PYTHONPATH": str(_REPOSITORY)}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        logs = self.run.logs.glob("*.log")
        return self.output_path.read_text() + "".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in logs)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def end(self) -> int:
        return self.process.wait(_DEADLINE_S)

    def interrupt(self) -> int:
        os.kill(self.process.pid, signal.SIGINT)
        return self.end()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts one; what still runs at the end is killed, and its roles with it."""
    started: list[Up] = []

    def start(*options: str) -> Up:
        started.append(Up(tmp_path, *options))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        holder = one.run.holder()
        if holder is not None:  # detached
            os.kill(int(str(holder["pid"])), signal.SIGKILL)


@pytest.fixture
def old(tmp_path: Path) -> RunDirectory:
    """A run, as far as its directory goes, which `runs/latest` names, and another one beside it."""
    for name in ("other", "pen"):
        run = RunDirectory(tmp_path / "runs" / name)
        run.checkpoints.mkdir(parents=True)
        run.write_config("env = 'pen'\n")
        run.lock.touch()
        (run.checkpoints / "policy").write_text("months of work")
    (tmp_path / "runs" / "latest").symlink_to("other")
    return run


def assert_in_its_place(old: RunDirectory) -> None:
    assert sorted(path.name for path in old.path.parent.iterdir()) == ["latest", "other", "pen"]
    assert sorted(path.name for path in old.path.iterdir()) == ["checkpoints", "config.toml", "launcher.lock"]
    assert old.config.read_text() == "env = 'pen'\n"
    assert (old.path.parent / "latest").resolve().name == "other"


def assert_kept_and_named(old: RunDirectory, output: str) -> None:
    kept = old.path.with_name("pen.1")
    assert f"is kept, whole, as {kept}" in output
    assert (kept / "config.toml").read_text() == "env = 'pen'\n"
    assert (kept / "checkpoints" / "policy").read_text() == "months of work"


def test_a_taken_port_of_redis_leaves_the_old_run_in_its_place(up: Callable[..., Up], old: RunDirectory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        run = up("--restart-behavior", "overwrite", "--replay.port", str(other.getsockname()[1]))
        assert run.end() == 2, run.output
    assert "choose another --replay.port" in run.output
    assert_in_its_place(old)


def test_a_taken_port_of_service_discovery_comes_late_and_costs_no_run_either(
    up: Callable[..., Up], old: RunDirectory
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        run = up("--restart-behavior", "overwrite", "--discovery-port", str(other.getsockname()[1]))
        assert run.end() == 2, run.output
    assert "error: replay: discovery_port: cannot listen" in run.output
    assert_kept_and_named(old, run.output)
    assert (old.path.parent / "latest").resolve().name == "other"


@without_a_gpu
@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_a_learner_that_refuses_its_settings_costs_no_run_and_the_terminal_is_told(
    up: Callable[..., Up], old: RunDirectory, detach: tuple[str, ...]
) -> None:
    run = up("--restart-behavior", "overwrite", "--device", "cuda", *detach)
    assert run.end() == 2, run.output
    assert "goes on without this terminal" not in run.output
    assert "error: learner: --device cuda: " in run.output
    assert_kept_and_named(old, run.output)


@without_a_gpu
def test_a_resume_whose_learner_refuses_its_settings_keeps_those_of_before(up: Callable[..., Up]) -> None:
    run = up("--device", "cpu")
    run.wait_until(lambda: "mirror holds" in run.output)
    assert run.interrupt() == 0, run.output
    before = run.run.config.read_text()
    again = up("--device", "cuda", "--restart-behavior", "resume")
    assert again.end() == 2, again.output
    assert run.run.config.read_text() == before


def test_an_overwritten_run_is_deleted_once_the_learner_has_accepted_its_settings(
    up: Callable[..., Up], old: RunDirectory
) -> None:
    run = up("--restart-behavior", "overwrite", "--device", "cpu", "--detach")
    assert run.end() == 0, run.output
    assert "it goes on without this terminal" in run.output
    assert not old.path.with_name("pen.1").exists()
    assert "learns on cpu" in (run.run.logs / "learner.log").read_text()
    holder = run.run.holder()
    assert holder is not None
    os.kill(int(str(holder["pid"])), signal.SIGTERM)
    deadline = time.monotonic() + _DEADLINE_S
    while run.run.holder() is not None:
        assert time.monotonic() < deadline, run.output
        time.sleep(0.05)
    assert "stopped: " in (run.run.logs / "launcher.out").read_text()


@pytest.mark.parametrize("seen", ["warning: ", "loading Ray", "starting the replay service"])
def test_ctrl_c_before_redis_has_anything_leaves_the_old_run_in_its_place(
    up: Callable[..., Up], old: RunDirectory, seen: str
) -> None:
    run = up("--restart-behavior", "overwrite", "--device", "cpu")
    run.wait_until(lambda: seen in run.output and old.path.with_name("pen.1").exists())
    code = run.interrupt()
    if old.path.with_name("pen.1").exists():
        assert_kept_and_named(old, run.output)
        pytest.skip("the replay service was quicker than Ctrl-C")
    # Before its handler is there, Ctrl-C is the interpreter's.
    assert code in ((0, 130) if seen == "warning: " else (0,)), run.output
    assert "Traceback" not in run.output
    if code == 0:
        assert "stopped before the run had begun" in run.output
    assert_in_its_place(old)


@pytest.mark.parametrize("behavior", ["overwrite", "restart"])
def test_ctrl_c_in_the_moment_that_moves_the_old_run_aside_puts_it_back(
    behavior: str, old: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = Path.rename

    def move_and_interrupt(path: Path, target: Path) -> Path:
        moved = moves(path, target)
        monkeypatch.setattr(Path, "rename", moves)
        os.kill(os.getpid(), signal.SIGINT)
        return moved

    monkeypatch.chdir(old.path.parents[1])
    monkeypatch.setattr(Path, "rename", move_and_interrupt)
    end = threading.Event()
    other = threading.Thread(target=end.wait)  # one that the system may choose to take the signal
    other.start()
    try:
        with pytest.raises(SystemExit, match="130"):
            cli.main(["up", "--run-dir", "runs/pen", *SMALL, "--restart-behavior", behavior])
    finally:
        end.set()
        other.join()
    assert_in_its_place(old)


def test_ctrl_c_before_the_learner_is_there_keeps_both_runs_and_names_the_old_one(
    up: Callable[..., Up], old: RunDirectory
) -> None:
    run = up("--restart-behavior", "overwrite", "--device", "cpu")
    run.wait_until(lambda: "is open; service discovery" in run.output)
    assert run.interrupt() == 0, run.output
    assert_kept_and_named(old, run.output)
    assert "--restart-behavior resume" in run.output
    assert run.run.holds_run
