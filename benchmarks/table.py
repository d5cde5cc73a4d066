"""Print the committed table as Markdown, for `docs/performance.md`: `python -m benchmarks.table`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.arguments import take_no_arguments
from benchmarks.record import RESULTS, read_table


def marks(row: Mapping[str, object]) -> str:
    """How a row was measured, where that is not as most were: † with a real-time priority, ‡ without AVX-512."""
    found = "†" * str(row["priority"]).startswith("real-time") + "‡" * (row["avx512"] is False)
    return f" {found}" if found else ""


def markdown(rows: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """The lines of the table."""
    yield "| question | value | against | ratio | target | met |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, row in rows.items():
        value = row["value"]
        shown = "not measured" if value is None else f"{value:,.10g} {row['unit']}"
        ratio, target = ("" if row[key] is None else f"{row[key]:,g}" for key in ("ratio", "target"))
        met = "" if row["met"] is None else "yes" if row["met"] else "**no**"
        yield f"| {name}{marks(row)} | {shown} | {row['against'] or ''} | {ratio} | {target} | {met} |"


def main() -> None:
    take_no_arguments(__doc__)
    for line in markdown(read_table(RESULTS.read_text(encoding="utf-8"))):
        print(line)


if __name__ == "__main__":
    main()
