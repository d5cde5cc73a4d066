"""Other people's software, timed by a process with an interpreter and packages of its own.

Peers cannot share this project's packages: d3rlpy asks for gymnasium 1.0.0 exactly, Reverb for a TensorFlow of 2023 and
NumPy 1. `make bench-peers` installs each into an environment beside the project's. A peer that is not there is skipped
with the reason; nothing of this project ever imports one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_ANSWER_TIMEOUT_S = 120.0


class PeerMissing(Exception):
    """This peer cannot be measured here; says why."""


@dataclass(slots=True)
class Peer:
    """A running peer."""

    process: subprocess.Popen[str]
    version: str = ""

    def ask(self, line: str) -> dict[str, float | str]:
        """Send a line and read the answer.

        Raises:
            PeerMissing: it ended, or took too long.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        killer = threading.Timer(_ANSWER_TIMEOUT_S, self.process.kill)
        killer.start()
        try:
            if line:
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()
            for answer in self.process.stdout:
                if answer.startswith("{"):
                    found: dict[str, float | str] = json.loads(answer)
                    if "unavailable" in found:
                        raise PeerMissing(str(found["unavailable"]))
                    return found
        except BrokenPipeError:
            pass
        finally:
            killer.cancel()
        raise PeerMissing(f"it ended with exit code {self.process.wait()}")

    def take(self, repeats: int) -> float:
        """A `Timer`."""
        return float(self.ask(str(repeats))["seconds"])


@contextmanager
def peer(script: str, *arguments: str, environment: str = "peers") -> Iterator[Peer]:
    """Start `benchmarks/peers/SCRIPT.py` in `.venv-ENVIRONMENT`, or here when there is no such environment.

    Raises:
        PeerMissing: its packages are not installed, or it failed.
    """
    own = _ROOT / f".venv-{environment}" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    command = [python, str(_ROOT / "benchmarks" / "peers" / f"{script}.py"), *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        started = Peer(process)
        started.version = str(started.ask("")["version"])
        yield started
    finally:
        process.kill()
        process.wait()
