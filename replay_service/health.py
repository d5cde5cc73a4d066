"""Whether the process of this container works: `python -m replay_service.health awac_actor_ --stalled-after-s 300`.

For health checks. It scrapes the process's own metrics at AWAC_METRICS_PORT, so it fails when nothing listens there,
when the interpreter hangs, when a metric that needs Redis is absent, or when no counter of the role moves any more:
a role that works counts steps, one that waits counts seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

_TIMEOUT_S = 5.0
_PORT_VARIABLE = "AWAC_METRICS_PORT"  # not imported from `process`: a check each few seconds loads as little as it can


class Unhealthy(Exception):
    """The check failed; the text says why."""


def matching_series(text: str, prefixes: Sequence[str]) -> dict[str, float]:
    """The series of a scrape whose names begin with one of the prefixes, with their values."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith(tuple(prefixes)):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def counted(series: dict[str, float]) -> float:
    """The sum of all counters."""
    return sum(value for name, value in series.items() if name.partition("{")[0].endswith("_total"))


def require_progress(count: float, file: Path, *, stalled_after_s: float, now: float) -> None:
    """Compare a count with that of earlier checks, which lies in a file.

    Args:
        count: of this check.
        file: remembers a count and when it was first seen.
        stalled_after_s: how long a count may stay the same, in seconds.
        now: in Unix time.

    Raises:
        Unhealthy: it has stayed the same for longer.
    """
    try:
        last, since = (float(word) for word in file.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        last, since = float("nan"), now
    if count != last:
        file.write_text(f"{count!r} {now!r}", encoding="utf-8")
    elif now - since > stalled_after_s:
        raise Unhealthy(f"no counter has moved for {now - since:.0f} s")


def check(port: int, prefixes: Sequence[str], *, stalled_after_s: float, file: Path) -> None:
    """Scrape once and judge; `stalled_after_s` 0 does not ask for progress.

    Raises:
        Unhealthy: says what is wrong.
    """
    address = f"http://127.0.0.1:{port}/metrics"
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            text = answer.read().decode()
    except OSError as error:
        raise Unhealthy(f"{address}: {error}") from error
    series = matching_series(text, prefixes)
    if not series:
        raise Unhealthy(f"{address}: no series begins with {' or '.join(prefixes)}")
    if stalled_after_s:
        require_progress(counted(series), file, stalled_after_s=stalled_after_s, now=time.time())


def main() -> int:
    """Check this container's process; exit code 1 and a line on stderr when it does not work."""
    parser = argparse.ArgumentParser(prog="python -m replay_service.health")
    parser.add_argument(
        "prefix", nargs="+", help="beginning of the names of the series that must be there (any of them)"
    )
    parser.add_argument("--stalled-after-s", type=float, default=0.0, help="fail when no counter moves for so long")
    parser.add_argument(
        "--file", type=Path, help="where the last count is kept (default: in the folder for temporary files)"
    )
    arguments = parser.parse_args()
    port = os.environ.get(_PORT_VARIABLE, "")
    if not port.isdecimal() or port == "0":
        print(f"error: {_PORT_VARIABLE}: expected the port of the process's metrics, got {port!r}", file=sys.stderr)
        return 2
    file = arguments.file or Path(tempfile.gettempdir()) / f"awac-health-{port}"
    try:
        check(int(port), arguments.prefix, stalled_after_s=arguments.stalled_after_s, file=file)
    except Unhealthy as error:
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
