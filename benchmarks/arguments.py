"""The command line of a benchmark without options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def take_no_arguments(documentation: str | None) -> None:
    """Let `--help` print the first line of a module's docstring, and end the program with 2 at any other word.

    Without that, `--help` or a mistyped word would begin minutes of load, or draw over pictures that are kept.
    """
    first_line = (documentation or "").partition("\n")[0]
    argparse.ArgumentParser(prog=f"python -m benchmarks.{Path(sys.argv[0]).stem}", description=first_line).parse_args()
