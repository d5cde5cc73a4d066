"""The table of `docs/performance.md` is that of the rows that are kept, and a row says itself how it was measured."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import record, table
from benchmarks.record import RESULTS, limited, read_table, report

PAGE = RESULTS.parents[1] / "docs" / "performance.md"


def test_the_page_shows_the_rows_that_are_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["table.py"])
    table.main()
    printed = capsys.readouterr().out
    assert f"\n\n{printed}\n" in PAGE.read_text(encoding="utf-8"), "give: python -m benchmarks.table"


@pytest.mark.parametrize(
    ("priority", "avx512", "expected"),
    [
        ("real-time 50", True, " †"),
        ("nice 0", False, " ‡"),
        ("real-time 1", False, " †‡"),
        ("nice 0", True, ""),
        (None, None, ""),
    ],
)
def test_marks_follow_how_a_row_was_measured(priority: str | None, avx512: bool | None, expected: str) -> None:
    assert table.marks({"name": "append by 1 writer", "priority": priority, "avx512": avx512}) == expected


def test_a_row_that_is_measured_anew_loses_the_mark_of_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "append by 1 writer"
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results.jsonl")
    record.RESULTS.write_text(RESULTS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(os, "sched_getscheduler", lambda _pid: os.SCHED_RR)
    monkeypatch.setattr(os, "sched_getparam", lambda _pid: os.sched_param(50))
    report(limited(name, 400_000.0, "env steps/s", note="in real time"))
    record.write_table([json.loads(capsys.readouterr().out)])
    before = table.markdown(read_table(record.RESULTS.read_text(encoding="utf-8")))
    assert "†" in next(line for line in before if name in line)
    monkeypatch.setattr(os, "sched_getscheduler", lambda _pid: os.SCHED_OTHER)
    report(limited(name, 500_000.0, "env steps/s", note="the server 85% of a core"))
    record.write_table([json.loads(capsys.readouterr().out)])
    rows = read_table(record.RESULTS.read_text(encoding="utf-8"))
    assert rows[name]["priority"] == f"nice {os.nice(0)}"
    assert rows[name]["note"] == "the server 85% of a core"
    assert "†" not in next(line for line in table.markdown(rows) if name in line)


@pytest.mark.parametrize("policy", [os.SCHED_RR, os.SCHED_FIFO, os.SCHED_RR | os.SCHED_RESET_ON_FORK])
def test_a_real_time_priority_is_written_down(policy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getscheduler", lambda _pid: policy)
    monkeypatch.setattr(os, "sched_getparam", lambda _pid: os.sched_param(50))
    assert record.priority() == "real-time 50"
