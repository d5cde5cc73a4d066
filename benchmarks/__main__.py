"""Run every benchmark in a process of its own and print what came out as a table: `python -m benchmarks`."""

from __future__ import annotations

import json
import subprocess
import sys

from rich.console import Console
from rich.table import Table

SCRIPTS = ("learner_update", "start_and_size")


def main() -> int:
    table = Table("question", "value", "against", "target", "met")
    failed = []
    for script in SCRIPTS:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{script}"], stdout=subprocess.PIPE, text=True, check=False
        )
        failed += [script] * (done.returncode != 0)
        for line in done.stdout.splitlines():
            print(line, flush=True)
            row = json.loads(line)
            against = f"{row['ratio']} x {row['against']}" if row["against"] else ""
            met = "" if row["met"] is None else "yes" if row["met"] else "no"
            target = "" if row["target"] is None else f"{row['target']:g}"
            table.add_row(row["name"], f"{row['value']:g} {row['unit']}", against, target, met)
    Console().print(table)
    for script in failed:
        print(f"benchmarks.{script} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
