"""Who is told of a closed terminal, and who is not."""

from __future__ import annotations

import signal
import subprocess
import sys

from launcher.interrupts import Interrupts, keeping_hangups_from_children

HANGUP = 1 << (signal.SIGHUP - 1)


def blocked_signals(pid: int | str) -> int:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return int(next(line.split()[1] for line in file if line.startswith("SigBlk:")), 16)


def test_children_do_not_hear_of_a_closed_terminal_and_this_process_does() -> None:
    before = blocked_signals("thread-self")
    with keeping_hangups_from_children():
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        assert blocked_signals(child.pid) & HANGUP
        assert blocked_signals("thread-self") == before
        child.send_signal(signal.SIGHUP)
    finally:
        child.communicate(timeout=60)
    assert child.returncode == 0


def test_under_nohup_a_closed_terminal_stays_unnoticed() -> None:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        interrupts = Interrupts()
        interrupts.install()
        signal.raise_signal(signal.SIGHUP)
        assert interrupts.count == 0
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.count == 1
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
