"""What cannot be shown ends no run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.unfailing_console import UnfailingConsole

PROGRAM = """
from launcher.unfailing_console import UnfailingConsole
console = UnfailingConsole()
for number in range(20_000):
    console.print(f"line {number}", "x" * 100)
raise SystemExit(7)
"""


def test_a_pipe_that_nobody_reads_any_more_ends_nothing() -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stderr is not None
    assert program.stdout.readline().startswith(b"line 0")
    program.stdout.close()
    errors = program.stderr.read()
    program.stderr.close()
    assert program.wait(60) == 7, "it went on to its own end"
    assert b"Traceback" not in errors


def test_a_full_disk_costs_what_was_to_be_shown_and_no_more(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with contextlib.suppress(OSError), Path("/dev/full").open("w", encoding="utf-8") as full:
        console = UnfailingConsole(file=full)
        console.print("this cannot be written")
        console.print("nor this")
    assert len([record for record in caplog.records if "cannot be written" in record.getMessage()]) == 1
    with (tmp_path / "shown").open("w", encoding="utf-8") as file:
        console.file = file
        console.print("there is room again")
    assert "there is room again" in (tmp_path / "shown").read_text(encoding="utf-8")
