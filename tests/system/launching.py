"""Give `launcher` commands as a user does, in processes of their own, and look at what a run leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replay_service.config_file import load_run_config
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.process_identity import ProcessIdentity
from replay_service.run_state import RunState, RunStateStore

PATIENCE_S = 300.0
"""For what a whole run does, on one machine or several: a bound for what hangs, never a measurement."""

SMALL_PEN = (
    "--env", "pen", "--actors", "2", "--num-offline-steps", "150", "--initial-env-steps", "400",
    "--learner.batch-size", "64", "--learner.policy-hidden-sizes", "32", "--learner.policy-hidden-sizes", "32",
    "--learner.critic-hidden-sizes", "32", "--learner.critic-hidden-sizes", "32",
    "--learner.evaluate-every-env-steps", "1000", "--learner.checkpoint-every-s", "2", "--evaluator.episodes", "2",
    "--device", "cpu", "--learner.threads", "1",
)  # fmt: skip


def wait_until(
    condition: Callable[[], bool],
    what: str,
    *,
    timeout_s: float = PATIENCE_S,
    pause_s: float = 0.1,
    told: Callable[[], str] = str,
) -> None:
    """Return once the condition holds; fail with `what`, and with what is `told` then, when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain: {what}\n{told()}"
        time.sleep(pause_s)


def launcher_command(*words: object) -> list[str]:
    """What starts `launcher words` with this interpreter."""
    return [sys.executable, "-m", "launcher", *map(str, words)]


def launcher(*words: object, cwd: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `launcher words` to its end, which is to have this exit code."""
    done = subprocess.run(launcher_command(*words), cwd=cwd, capture_output=True, text=True, timeout=400)
    told = f"launcher {shlex.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == code, f"exit code {done.returncode} of {told}"
    assert "Traceback" not in done.stderr, told
    return done


def assert_sound(run_dir: Path) -> None:
    """`launcher doctor` finds nothing lost, doubled or damaged."""
    assert launcher("doctor", run_dir).stdout.splitlines()[-1] == f"{run_dir}: sound"


@dataclass
class Launched:
    """One `launcher up` in progress."""

    process: subprocess.Popen[str]
    run_dir: Path
    output_path: Path

    @property
    def output(self) -> str:
        return self.output_path.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout_s: float = 400.0) -> int:
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
        client = connect(RedisEndpoint.load(self.run_dir / "redis" / "connection.json"))
        try:
            return RunStateStore(client, Keys(load_run_config(self.run_dir / "config.toml").run_id)).read()
        finally:
            client.close()

    def processes(self) -> dict[str, ProcessIdentity]:
        client = connect(RedisEndpoint.load(self.run_dir / "redis" / "connection.json"))
        try:
            return RunStateStore(client, Keys(load_run_config(self.run_dir / "config.toml").run_id)).processes()
        finally:
            client.close()

    def wait_until(self, condition: Callable[[RunState], bool], timeout_s: float = PATIENCE_S) -> RunState:
        """Wait for a state of the run; a launcher that ends meanwhile is a failure."""
        state: RunState | None = None

        def holds() -> bool:
            nonlocal state
            assert self.process.poll() is None, f"launcher ended:\n{self.output}\n{self.logs()}"
            try:
                state = self.state()
            except Exception:  # Redis is not up yet, or is just being killed by the test
                return False
            return condition(state)

        wait_until(
            holds, "a state of the run", timeout_s=timeout_s,
            told=lambda: f"last state {state}\n{self.output}\n{self.logs()}",
        )  # fmt: skip
        assert state is not None
        return state


def hear_hangups() -> None:
    """As below a user's shell; tests that were started under `nohup` have a closed terminal ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def launch(run_dir: Path, options: Sequence[str], environment: dict[str, str] | None = None) -> Launched:
    """Start `launcher up` with its output in a file, as in a pipe: no terminal."""
    output_path = run_dir.with_name(f"{run_dir.name}.{time.monotonic_ns()}.out")
    with output_path.open("w") as output:
        process = subprocess.Popen(
            launcher_command("up", "--run-dir", run_dir, *options),
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
    pids = [pid for pid, line in processes_of(run_dir).items() if f"-m {module} " in line]
    began = {pid: ProcessIdentity.of(pid).started_ticks for pid in pids}  # 0: has ended since
    return sorted((pid for pid in pids if began[pid]), key=lambda pid: (began[pid], pid))  # ids begin again at 300


def contents_of(run_dir: Path) -> Iterator[tuple[Path, bytes]]:
    """Each file of a run that is up, with what is in it; those that the run deletes meanwhile are left out."""
    for folder, _folders, names in os.walk(run_dir):
        for path in (Path(folder, name) for name in names):
            try:
                content = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                continue
            yield path, content


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def wait_until_gone(run_dir: Path) -> dict[int, str]:
    """Processes of the run that are still there when nobody waits any longer; empty when all are gone."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not processes_of(run_dir), "its processes to end")
    return processes_of(run_dir)
