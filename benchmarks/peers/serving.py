"""The side of a peer: say what it is, then time what is asked for, until the input ends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable


def unavailable(reason: object) -> None:
    """Say that this peer cannot be measured here, and end."""
    print(json.dumps({"unavailable": str(reason)}), flush=True)
    sys.exit(0)


def serve(version: str, act: Callable[[], object]) -> None:
    """For every number on the input, do something so many times and say how long that took."""
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            act()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
