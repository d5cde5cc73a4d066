"""The pictures of the documents are those of the CSV files beside them."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.pictures import PICTURES, RESULTS, draw

_PINNED = re.search(r"^matplotlib==(\S+)$", (RESULTS.parents[1] / "constraints.txt").read_text(), re.MULTILINE)


def test_there_is_no_picture_that_nothing_draws_and_no_rows_that_nothing_shows() -> None:
    assert {path.name for path in RESULTS.glob("*.png")} == set(PICTURES)
    shown = {name for picture in PICTURES.values() for name in (*picture.rows, picture.references) if name}
    assert {path.name for path in RESULTS.glob("*.csv")} - shown == {"published-but.csv", "other-starts.csv"}


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_picture_shows_the_rows_that_stand_there_now(name: str, tmp_path: Path) -> None:
    assert _PINNED is not None
    if version("matplotlib") != _PINNED[1]:
        pytest.skip(f"pictures have the same bytes with the matplotlib that drew them alone, {_PINNED[1]}")
    assert draw(name, tmp_path).read_bytes() == (RESULTS / name).read_bytes(), "give: python -m benchmarks.pictures"
