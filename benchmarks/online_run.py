"""A `launcher up` that is watched from outside while it is online."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.run_directory import RunDirectory
from replay_service.config_file import load_run_config
from replay_service.connection import TRANSIENT_ERRORS, RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.reports import LearnerReport, Reports
from replay_service.run_state import Phase, RunState, RunStateStore

_START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 120.0


@dataclass(slots=True)
class OnlineRun:
    """A run that is online."""

    process: subprocess.Popen[bytes]
    client: RedisClient
    keys: Keys

    def state(self) -> RunState:
        """Its counters now."""
        return RunStateStore(self.client, self.keys).read()

    def learner_reports(self) -> list[LearnerReport]:
        """All of them, oldest first."""
        return [report for _, report in Reports(self.client, self.keys).learner_reports()]

    def memory_mib(self) -> float:
        """Memory of all its processes together; what they share is counted once."""
        return sum(proportional_mib(pid) for pid in family(self.process.pid))


def family(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def proportional_mib(pid: int) -> float:
    """Proportional set size of a process; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


@contextlib.contextmanager
def online_run(folder: Path, **options: object) -> Iterator[OnlineRun]:
    """Start `launcher up`, wait until its learner updates online, and end it in order.

    Args:
        folder: takes the run directory.
        options: of `launcher up`, with underscores and, for a dot, two of them.

    Raises:
        RuntimeError: it ended, or took too long.
    """
    run = RunDirectory(folder.resolve() / "run")
    words = [
        word
        for name, value in options.items()
        for word in ("--" + name.replace("__", ".").replace("_", "-"), str(value))
    ]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher", "up", "--run-dir", str(run.path), *words],
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield _wait(run, process, folder / "output")
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a run in order; kill it when that fails."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(run: RunDirectory, process: subprocess.Popen[bytes], output: Path) -> OnlineRun:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
        if not run.ready.exists():
            continue
        found = OnlineRun(
            process,
            connect(RedisEndpoint.load(run.connection), reply_timeout_s=5.0),
            Keys(load_run_config(run.config).run_id),
        )
        with contextlib.suppress(*TRANSIENT_ERRORS):
            while time.monotonic() < deadline and process.poll() is None:
                state = found.state()
                if state.phase is Phase.ONLINE and state.online_grad_steps > 0:
                    return found
                time.sleep(0.1)
        found.client.close()
    raise RuntimeError(f"the run was not online in time; it said: {output.read_text(encoding='utf-8')[-500:]}")
