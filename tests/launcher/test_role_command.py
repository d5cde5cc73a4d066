"""Processes of a pipeline: how many run beside each other, what one that fails does to the others, and who is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from launcher.role_command import StepFailed, StepRefused, run_module, run_modules
from tests.conftest import WaitUntil

STEP = """
import pathlib, signal, sys, time
from replay_service.process import die_with_launcher
die_with_launcher()
folder, name, what = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(folder / f"{name}.began").touch()
def wait_for(*names):
    while not all((folder / f"{name}.began").exists() for name in names):
        time.sleep(0.01)
if what == "hang":
    (folder / f"{name}.hangs").touch()
    signal.pause()
if what == "fail":
    wait_for(*sys.argv[4:])
    sys.exit(3)
if what == "refuse":
    sys.exit(2)
if what == "meet":
    wait_for(*sys.argv[4:])
print(f"{name} says so")
(folder / f"{name}.ended").touch()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a module `step` that every interpreter finds."""
    (tmp_path / "step.py").write_text(STEP, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return tmp_path


def names(folder: Path, ending: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*.{ending}")}


def test_one_is_run_to_its_end(folder: Path) -> None:
    assert run_module("step", folder, "a", "end") == "a says so"
    with pytest.raises(StepRefused, match=r"^step refused its input \(see above\)$"):
        run_module("step", folder, "b", "refuse")
    with pytest.raises(StepFailed, match=r"^step ended with code 3$"):
        run_module("step", folder, "c", "fail")


def test_they_run_beside_each_other_and_are_counted_as_they_end(folder: Path) -> None:
    counted: list[int] = []
    # Each waits for its neighbour to have begun: one after the other they would wait for ever.
    lines = [
        (folder, "a", "meet", "b"),
        (folder, "b", "meet", "a"),
        (folder, "c", "meet", "d"),
        (folder, "d", "meet", "c"),
    ]
    run_modules("step", lines, at_once=2, ended=counted.append)
    assert counted == [1, 2, 3, 4]
    assert names(folder, "ended") == {"a", "b", "c", "d"}


def test_one_that_fails_stops_the_rest(folder: Path) -> None:
    lines = [(folder, "a", "hang"), (folder, "b", "fail", "a"), *((folder, f"c{i}", "end") for i in range(20))]
    counted: list[int] = []
    with pytest.raises(StepFailed, match=r"^step ended with code 3$"):
        run_modules("step", lines, at_once=2, ended=counted.append)
    assert counted == []
    assert names(folder, "began") == {"a", "b"}
    assert not running(folder)


def running(folder: Path) -> list[int]:
    """Processes that have the folder's name among their arguments, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if b"step" in words and str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("beside", [False, True])
def test_a_signal_to_who_started_them_ends_them(
    folder: Path, number: signal.Signals, beside: bool, wait_until: WaitUntil
) -> None:
    call = "run_modules('step', [(f, 'a', 'hang'), (f, 'b', 'hang'), (f, 'c', 'hang')], at_once=2, ended=print)"
    program = f"""
        import pathlib
        from launcher.role_command import run_module, run_modules
        f = {str(folder)!r}
        try:
            {call if beside else "run_module('step', f, 'a', 'hang')"}
        finally:
            (pathlib.Path(f) / "cleared").touch()
    """
    expected = {"a", "b"} if beside else {"a"}
    starter = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: names(folder, "hangs") == expected, "the processes to begin")
        starter.send_signal(number)
        assert starter.wait(120) == (143 if number == signal.SIGTERM else -number)
        if number == signal.SIGKILL:
            wait_until(lambda: running(folder) == [], "the kernel to end them")
        else:
            assert running(folder) == []
        assert (folder / "cleared").exists() is (number != signal.SIGKILL)
        assert names(folder, "began") == expected
    finally:
        starter.kill()
        starter.wait()
