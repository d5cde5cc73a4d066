from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from benchmarks.synthetic import cpu_seconds


def test_cpu_time_is_counted_finer_than_in_ticks() -> None:
    before = time.process_time()
    found = cpu_seconds(os.getpid())
    assert before <= found <= time.process_time()


def test_the_cpu_time_of_a_process_that_is_gone_is_not_made_up() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(ProcessLookupError):
        cpu_seconds(process.pid)
