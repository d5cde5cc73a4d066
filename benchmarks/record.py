"""The line of JSON that every benchmark prints, and the table that all of them make."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results.jsonl"
FALL_TOLERANCE = 0.25
"""A ratio that lies below the committed one by more than this share is a regression; the sides of a ratio are measured
alternately, so most of what else the machine does falls on both."""

_COLUMNS = (
    "name", "value", "unit", "against", "ratio", "target", "met", "note", "machine", "avx512", "priority", "date",
    "commit",
)  # fmt: skip
_PACKAGES = ("torch", "numpy", "mujoco", "redis", "ray")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One answer."""

    name: str
    value: float | None
    """None: it could not be measured here; `note` says why."""
    unit: str
    against: str | None = None
    """What the value is compared with, measured in the same run, its own value included."""
    ratio: float | None = None
    """How many times better than that: above 1 the value wins, whether it is a time or a rate."""
    target: float | None = None
    """Of the ratio, where there is one, else of the value."""
    met: bool | None = None
    note: str | None = None
    """What a reader must know to judge the value."""


def compared(
    name: str, value: float, unit: str, *, against: str, other: float, target: float | None = None,
    less_is_better: bool = False, digits: int = 3, note: str | None = None,
) -> Measurement:  # fmt: skip
    """A value beside another one of the same unit; the target is a lowest ratio."""
    ratio = other / value if less_is_better else value / other
    met = None if target is None else ratio >= target
    return Measurement(
        name=name, value=rounded(value, digits), unit=unit, against=f"{against}: {rounded(other, digits):g} {unit}",
        ratio=rounded(ratio, 3), target=target, met=met, note=note,
    )  # fmt: skip


def limited(
    name: str, value: float, unit: str, *, at_least: float | None = None, at_most: float | None = None, digits: int = 3,
    note: str | None = None,
) -> Measurement:  # fmt: skip
    """A value alone, beside one bound at most."""
    met = None
    if at_least is not None or at_most is not None:
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return Measurement(
        name=name, value=rounded(value, digits), unit=unit, target=at_least if at_least is not None else at_most,
        met=met, note=note,
    )  # fmt: skip


def skipped(name: str, reason: str) -> Measurement:
    """A comparison that could not be made, with the reason."""
    return Measurement(name=name, value=None, unit="", note=f"skipped: {reason}")


def rounded(value: float, digits: int) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")


@cache
def machine() -> str:
    """Processor, cores and memory of this machine."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB"


@cache
def has_avx512() -> bool | None:
    """Whether this processor has AVX-512, on which the time of matrix products depends; None: not known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any("avx512f" in line.split() for line in file if line.startswith("flags"))
    except OSError:
        return None


def priority() -> str:
    """How this process gets its cores: "real-time" by `chrt -r` or `-f`, before all others; else by its niceness."""
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in {os.SCHED_RR, os.SCHED_FIFO}:
        return f"real-time {os.sched_getparam(0).sched_priority}"
    return f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"


_LOAD_AT_START = os.getloadavg()[0]


def load() -> float:
    """Mean number of processes that wanted a core in the minute before this program began: 0 on an idle machine."""
    return round(float(os.environ.get("BENCHMARK_LOAD", _LOAD_AT_START)), 1)


@cache
def commit() -> str:
    """The commit that is measured, with '+' when the tree differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(RESULTS.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "..", f":!{RESULTS.name}")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


@cache
def versions() -> dict[str, str]:
    """Python and the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def report(measurement: Measurement) -> None:
    """Print one answer as a line of JSON."""
    stamp = {
        "machine": f"{machine()}; load {load():g}", "avx512": has_avx512(), "priority": priority(),
        "date": time.strftime("%Y-%m-%d"), "commit": commit(), "versions": versions(),
    }  # fmt: skip
    print(json.dumps({**asdict(measurement), **stamp}), flush=True)


def read_table(text: str) -> dict[str, dict[str, object]]:
    """The rows of a table by name."""
    rows = [json.loads(line) for line in text.splitlines() if line]
    return {row["name"]: row for row in rows}


def committed_table() -> dict[str, dict[str, object]]:
    """The table of the last commit; empty when there is none."""
    command = ["git", "-C", str(RESULTS.parent), "show", f"HEAD:./{RESULTS.name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return read_table(found.stdout) if found.returncode == 0 else {}


def write_table(rows: Iterable[dict[str, object]]) -> None:
    """Put rows into the table: a row replaces the one of its name, a new one is added at the end."""
    table = read_table(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    table |= {str(row["name"]): {column: row.get(column) for column in _COLUMNS} for row in rows}
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in table.values()), encoding="utf-8")


def regressions(rows: Iterable[dict[str, object]], before: dict[str, dict[str, object]]) -> list[str]:
    """What got worse: ratios that fell by more than `FALL_TOLERANCE`, a sentence each."""
    found = []
    for row in rows:
        old = before.get(str(row["name"]), {}).get("ratio")
        new = row["ratio"]
        if isinstance(old, int | float) and isinstance(new, int | float) and new < old * (1.0 - FALL_TOLERANCE):
            found.append(f"{row['name']}: the ratio fell from {old:g} to {new:g}")
    return found


def warn(text: str) -> None:
    """Say something that is no result."""
    print(text, file=sys.stderr, flush=True)
