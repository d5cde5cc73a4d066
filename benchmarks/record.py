"""The line of JSON that every benchmark prints."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One answer."""

    name: str
    value: float
    unit: str
    against: str | None = None
    """What the value is compared with, measured in the same run."""
    ratio: float | None = None
    """Value divided by that."""
    target: float | None = None
    met: bool | None = None


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


def commit() -> str:
    """The commit that is measured, with '+' when the tree differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain") else "")


def report(measurement: Measurement) -> None:
    """Print one answer as a line of JSON."""
    stamp = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "commit": commit()}
    print(json.dumps({**asdict(measurement), **stamp}), flush=True)
