"""Start `launcher up` as a user does, in a process of its own, and look at what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replay_service.config_file import load_run_config
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.process_identity import ProcessIdentity
from replay_service.run_state import RunState, RunStateStore

START_TIMEOUT_S = 120.0

SMALL_PEN = (
    "--env", "pen", "--actors", "2", "--num-offline-steps", "150", "--initial-env-steps", "400",
    "--learner.batch-size", "64", "--learner.policy-hidden-sizes", "32", "--learner.policy-hidden-sizes", "32",
    "--learner.critic-hidden-sizes", "32", "--learner.critic-hidden-sizes", "32",
    "--learner.evaluate-every-env-steps", "1000", "--learner.checkpoint-every-s", "2", "--evaluator.episodes", "2",
    "--device", "cpu", "--learner.threads", "1",
)  # fmt: skip


@dataclass
class Launched:
    """One `launcher up` in progress."""

    process: subprocess.Popen[str]
    run_dir: Path
    output_path: Path

    @property
    def output(self) -> str:
        return self.output_path.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout_s: float = 240.0) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"launcher did not end in {timeout_s} s:\n{self.output}\n{self.logs()}") from error

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in self.run_dir.glob("logs/*"))

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text(encoding="utf-8"))
        return found

    def state(self) -> RunState:
        client = connect(RedisEndpoint.load(self.run_dir / "redis" / "connection.json"), reply_timeout_s=5.0)
        try:
            return RunStateStore(client, Keys(load_run_config(self.run_dir / "config.toml").run_id)).read()
        finally:
            client.close()

    def processes(self) -> dict[str, ProcessIdentity]:
        client = connect(RedisEndpoint.load(self.run_dir / "redis" / "connection.json"), reply_timeout_s=5.0)
        try:
            return RunStateStore(client, Keys(load_run_config(self.run_dir / "config.toml").run_id)).processes()
        finally:
            client.close()

    def wait_until(self, condition: Callable[[RunState], bool], timeout_s: float = START_TIMEOUT_S) -> RunState:
        """Wait for a state of the run; a launcher that ends meanwhile is a failure."""
        deadline = time.monotonic() + timeout_s
        state: RunState | None = None
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"launcher ended:\n{self.output}\n{self.logs()}"
            try:
                state = self.state()
            except Exception:  # Redis is not up yet, or is just being killed by the test
                time.sleep(0.2)
                continue
            if condition(state):
                return state
            time.sleep(0.1)
        raise AssertionError(f"condition not met in {timeout_s} s; last state {state}\n{self.output}\n{self.logs()}")


def hear_hangups() -> None:
    """As below a user's shell; tests that were started under `nohup` have a closed terminal ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def launch(run_dir: Path, options: Sequence[str], environment: dict[str, str] | None = None) -> Launched:
    """Start `launcher up` with its output in a file, as in a pipe: no terminal."""
    output_path = run_dir.with_name(f"{run_dir.name}.{time.monotonic_ns()}.out")
    with output_path.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher", "up", "--run-dir", str(run_dir), *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=run_dir.parent,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=hear_hangups,  # noqa: PLW1509 - one system call
        )
    return Launched(process, run_dir, output_path)


def processes_of(run_dir: Path) -> dict[int, str]:
    """Command lines of all living processes that name the run directory."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(run_dir) in line:
                found[int(entry.name)] = line
    return found


def role_pids(run_dir: Path, module: str) -> list[int]:
    """Process ids of a role, oldest first: '-m learner', '-m actors actor', ..."""
    return sorted(pid for pid, line in processes_of(run_dir).items() if f"-m {module} " in line)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def wait_until_gone(run_dir: Path, timeout_s: float = 20.0) -> dict[int, str]:
    """Processes of the run that are still there after the time-out; empty when all are gone."""
    deadline = time.monotonic() + timeout_s
    while (left := processes_of(run_dir)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
