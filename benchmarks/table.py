"""Print the committed table as Markdown, for `docs/performance.md`: `python -m benchmarks.table`."""

from __future__ import annotations

from benchmarks.record import RESULTS, read_table

_WITH_PRIORITY = (
    "append, 8 writers, against Reverb", "append by", "append with", "append to",
    "sample 1024 of a mirror", "simulated",
)  # fmt: skip
"""Beginnings of the names of rows that were taken with a real-time priority on a busy machine."""


def main() -> None:
    print("| question | value | against | ratio | target | met |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in read_table(RESULTS.read_text(encoding="utf-8")).values():
        name, value = str(row["name"]), row["value"]
        shown = "not measured" if value is None else f"{value:,.10g} {row['unit']}"
        ratio, target = ("" if row[key] is None else f"{row[key]:,g}" for key in ("ratio", "target"))
        met = "" if row["met"] is None else "yes" if row["met"] else "**no**"
        mark = " †" if name.startswith(_WITH_PRIORITY) else ""
        print(f"| {name}{mark} | {shown} | {row['against'] or ''} | {ratio} | {target} | {met} |")


if __name__ == "__main__":
    main()
