"""The table of benchmarks: what a ratio means, what is a regression, what a new run does to the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import record
from benchmarks.record import compared, limited, read_table, regressions, skipped, write_table
from benchmarks.timing import alternate


def row(name: str, ratio: float | None) -> dict[str, Any]:
    return {"name": name, "value": 1.0, "unit": "s", "against": None, "ratio": ratio, "target": None, "met": None,
            "note": "n", "machine": "m", "avx512": True, "priority": "nice 0", "date": "d", "commit": "c",
            "versions": "left out of the table"}  # fmt: skip


@pytest.mark.parametrize(("less_is_better", "ratio", "met"), [(True, 0.5, False), (False, 2.0, True)])
def test_a_ratio_above_one_is_better_whatever_is_measured(less_is_better: bool, ratio: float, met: bool) -> None:
    found = compared("x", 4.0, "u", against="peer", other=2.0, target=1.5, less_is_better=less_is_better)
    assert (found.ratio, found.met) == (ratio, met)
    assert found.against == "peer: 2 u"


@pytest.mark.parametrize(
    ("bounds", "met"), [({}, None), ({"at_least": 3}, True), ({"at_least": 4}, False), ({"at_most": 2}, False)]
)
def test_a_value_alone_meets_its_bound(bounds: dict[str, Any], met: bool | None) -> None:
    assert limited("x", 3.0, "u", **bounds).met is met


def test_what_was_skipped_says_why_and_meets_nothing() -> None:
    found = skipped("x", "d3rlpy: No module named 'd3rlpy'")
    assert (found.value, found.met, found.note) == (None, None, "skipped: d3rlpy: No module named 'd3rlpy'")


def test_a_ratio_that_fell_by_more_than_a_quarter_is_a_regression() -> None:
    before = {name: row(name, 2.0) for name in ("fell", "held", "rose", "skipped now")}
    now = [row("fell", 1.49), row("held", 1.51), row("rose", 9.0), row("new", 0.1), row("skipped now", None)]
    assert regressions(now, before) == ["fell: the ratio fell from 2 to 1.49"]


def test_rows_replace_those_of_their_name_and_keep_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results.jsonl")
    write_table([row("first", 1.0), row("second", 2.0)])
    write_table([row("third", 3.0), row("first", 4.0)])
    lines = [json.loads(line) for line in record.RESULTS.read_text(encoding="utf-8").splitlines()]
    assert [(line["name"], line["ratio"]) for line in lines] == [("first", 4.0), ("second", 2.0), ("third", 3.0)]
    assert list(lines[0]) == [column for column in row("first", 4.0) if column != "versions"]


def test_the_committed_table_can_be_read_and_its_verdicts_follow_from_its_figures() -> None:
    table = read_table(record.RESULTS.read_text(encoding="utf-8"))
    assert table
    for name, found in table.items():
        if found["met"] is not None and found["ratio"] is not None:
            assert found["met"] is (float(str(found["ratio"])) >= float(str(found["target"]))), name


def test_sides_take_turns_and_the_first_round_is_not_counted() -> None:
    turns: list[str] = []
    seconds = iter([100.0, 100.0, 2.0, 6.0, 4.0, 8.0])

    def side(name: str) -> Any:
        def take(repeats: int) -> float:
            turns.append(f"{name}{repeats}")
            return next(seconds)

        return take

    found = alternate({"a": side("a"), "b": side("b")}, rounds=2, repeats=2)
    assert turns == ["a2", "b2"] * 3
    assert (found["a"].best, found["a"].median) == (1.0, 1.5)
    assert (found["b"].best, found["b"].median) == (3.0, 3.5)
