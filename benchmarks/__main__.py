"""Run benchmarks, each in a process of its own: all by `python -m benchmarks`, some by `python -m benchmarks NAME...`.

Prints every line as it comes and a table at the end, and compares each ratio with the table of the last commit: exit
code 1 when one fell by more than a quarter, or a script failed. `--write` puts the rows into `results.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks.record import committed_table, load, regressions, warn, write_table

SCRIPTS = (
    "learner_update", "gpu_update", "replay_sampling", "replay_append", "replay_scaling", "actor_rate", "weights",
    "start_and_size", "many_actors", "whole_run", "fleet_model",
)  # fmt: skip


def run(script: str) -> tuple[list[dict[str, object]], int]:
    """The rows that one script printed, and its exit code."""
    began = time.monotonic()
    environment = {**os.environ, "BENCHMARK_LOAD": str(load())}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}"], stdout=subprocess.PIPE, text=True, check=False, env=environment
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        print(line, flush=True)
    warn(f"benchmarks.{script}: {time.monotonic() - began:.0f} s, exit code {done.returncode}")
    return [json.loads(line) for line in lines], done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}; default: all")
    parser.add_argument("--write", action="store_true", help="put the rows into benchmarks/results.jsonl")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in SCRIPTS]
    if unknown:
        parser.error(f"expected some of {', '.join(SCRIPTS)}, got {unknown[0]!r}")
    before = committed_table()
    table = Table("question", "value", "against", "ratio", "target", "met")
    rows: list[dict[str, object]] = []
    failed = []
    for script in arguments.names or SCRIPTS:
        found, code = run(script)
        rows += found
        failed += [script] * (code != 0)
        for row in found:
            value = str(row["note"]) if row["value"] is None else f"{row['value']:g} {row['unit']}"
            ratio, target = ("" if row[name] is None else f"{row[name]:g}" for name in ("ratio", "target"))
            met = "" if row["met"] is None else "yes" if row["met"] else "no"
            table.add_row(str(row["name"]), value, str(row["against"] or ""), ratio, target, met)
    Console().print(table)
    worse = regressions(rows, before)
    if arguments.write:
        write_table(rows)
    for text in (*worse, *(f"benchmarks.{script} failed" for script in failed)):
        warn(text)
    return 1 if failed or worse else 0


if __name__ == "__main__":
    sys.exit(main())
