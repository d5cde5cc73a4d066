"""`launcher watch` follows a real run from a process of its own: in a terminal, and in a pipe."""

from __future__ import annotations

import os
import pty
import signal
import struct
import subprocess
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.system.conftest import Start
from tests.system.launching import PATIENCE_S, SMALL_PEN, launcher, launcher_command, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]


def read_terminal(master: int, wanted: str, timeout_s: float) -> str:
    """What a terminal shows, until it has shown `wanted`."""
    os.set_blocking(master, False)
    shown = b""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and wanted.encode() not in shown:
        try:
            shown += os.read(master, 65_536)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            break  # the other side has left
    return shown.decode(errors="replace")


def test_watch_follows_a_run_and_ends_with_it(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000", "--utd-ratio", "0.5")
    run.wait_until(lambda state: state.env_steps >= 600)

    def once() -> str:
        return launcher("watch", run.run_dir, "--once").stdout

    wait_until(lambda: "2 of 2 alive" in once(), "the second actor", told=once)
    assert "fine-tuning online" in once()
    assert "\x1b" not in once()

    # In a terminal of 80 x 24 it draws the screen; Ctrl-C leaves it, and the run goes on.
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    live = subprocess.Popen(
        launcher_command("watch", run.run_dir), stdin=slave, stdout=slave, stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(slave)
    shown = read_terminal(master, "of 100,000 env steps", PATIENCE_S)
    assert "utd ratio" in shown
    assert "steps/s" in shown
    live.send_signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE_S
    while live.poll() is None and time.monotonic() < deadline:
        read_terminal(master, "nothing prints this", 0.2)  # who does not read holds up who writes
    assert live.poll() == 0
    os.close(master)
    assert run.process.poll() is None

    # In a pipe it writes plain lines, and ends with the run.
    piped = subprocess.Popen(
        launcher_command("watch", run.run_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert piped.stdout is not None
    while "fine-tuning online" not in (line := piped.stdout.readline()):
        assert line, f"watch ended: {piped.communicate()[1]}"
    os.kill(run.process.pid, signal.SIGINT)
    out, err = piped.communicate(timeout=PATIENCE_S)
    assert piped.returncode == 0, err
    assert out.splitlines()[-1] == f"{run.run_dir} is down"
    assert run.wait() == 0

    after = launcher("watch", run.run_dir, code=2)
    assert "is not running; `launcher status" in after.stderr


def test_watch_of_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "holds no run" in launcher("watch", tmp_path, code=2).stderr
