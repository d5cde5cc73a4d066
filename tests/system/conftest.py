"""Fixtures of the system tests: every run that a test leaves behind is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.launching import Launched, launch, processes_of

Start = Callable[..., Launched]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `launcher up`; whatever still runs at the end of the test is killed."""
    started: list[Launched] = []

    def begin(*options: str, run_dir: Path | None = None, environment: dict[str, str] | None = None) -> Launched:
        launched = launch(run_dir or tmp_path / "run", options, environment)
        started.append(launched)
        return launched

    yield begin
    for launched in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launched.process.pid, signal.SIGKILL)
        launched.process.wait()
        for pid in processes_of(launched.run_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
