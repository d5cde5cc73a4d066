"""However a run is ended, no process, port, shared memory or lock of it is left, and it resumes."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.run_directory import RunDirectory
from replay_service.config_file import load_run_config
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.process_identity import ProcessIdentity
from replay_service.run_state import RunStateStore
from tests.system.conftest import Start
from tests.system.launching import (
    SMALL_PEN,
    Launched,
    assert_sound,
    hear_hangups,
    kill,
    launcher,
    launcher_command,
    wait_until,
)

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def descendants(pid: int) -> list[ProcessIdentity]:
    """A process and everything below it, Ray's own processes too."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for above in found:
        found += [child for child, parent in parents.items() if parent == above]
    return [ProcessIdentity.of(one) for one in found]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def listening() -> dict[str, str]:
    """Socket inode -> local address of every listening TCP socket of this machine."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                found[words[9]] = words[1]
    return found


@dataclass
class Belongings:
    """What a run has on this machine."""

    processes: list[ProcessIdentity]
    sockets: dict[str, str]
    shared_memory: set[Path]

    @staticmethod
    def of(pid: int) -> Belongings:
        processes, sockets, shared = descendants(pid), {}, set()
        all_listening = listening()
        for process in processes:
            with suppress(OSError):
                for handle in Path(f"/proc/{process.pid}/fd").iterdir():
                    with suppress(OSError):
                        target = os.readlink(handle)
                        inode = target[8:-1] if target.startswith("socket:[") else ""
                        if inode in all_listening:
                            sockets[inode] = all_listening[inode]
                for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                    if "/dev/shm/" in line and not line.endswith(" (deleted)"):  # else it ends with its processes
                        shared.add(Path(line[line.index("/dev/shm/") :]))
        return Belongings(processes, sockets, shared)

    @property
    def ports(self) -> set[int]:
        return {int(address.rpartition(":")[2], 16) for address in self.sockets.values()}

    def left(self) -> list[str]:
        still = listening()
        return [
            *(f"process {p.pid} {command_line(p.pid)}" for p in self.processes if p.is_alive),
            *(f"port {address}" for inode, address in self.sockets.items() if inode in still),
            *(f"{path}" for path in self.shared_memory if path.exists()),
        ]


def assert_nothing_is_left(belongings: Belongings, run_dir: Path) -> None:
    # Ray's agents look for their raylet, and end, a minute after a SIGKILL.
    wait_until(
        lambda: not belongings.left(), "all that it had to be gone", timeout_s=180.0, pause_s=0.2,
        told=lambda: "\n".join(belongings.left()),
    )  # fmt: skip
    with RunDirectory(run_dir).held():
        pass  # refused when anybody still had the lock


def known_ports(run: Launched) -> set[int]:
    """Of Redis, of discovery, and of the metrics of every role that has told where they are."""
    redis = RedisEndpoint.load(run.run_dir / "redis" / "connection.json")
    client = connect(redis)
    keys = Keys(load_run_config(run.run_dir / "config.toml").run_id)
    endpoints = RunStateStore(client, keys).endpoints()
    discovery = client.hget(keys.run, "discovery")
    client.close()
    assert discovery is not None
    assert {"replay", "learner"} <= set(endpoints)
    addresses = (redis.url, discovery.decode(), *endpoints.values())
    return {int(address.rpartition(":")[2]) for address in addresses}


def take_terminal() -> None:
    hear_hangups()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def in_a_terminal(run_dir: Path, *options: str) -> tuple[Launched, int]:
    """Start `launcher up` in a terminal of its own; returns the terminal's other end too."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        launcher_command("up", "--run-dir", run_dir, *options),
        stdin=slave, stdout=slave, stderr=slave, text=True, cwd=run_dir.parent, start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509 - two system calls
    )  # fmt: skip
    os.close(slave)
    screen = run_dir.with_name("screen.out")

    def drain() -> None:
        with screen.open("wb") as file, suppress(OSError, ValueError):
            while data := os.read(master, 65536):
                file.write(data)

    threading.Thread(target=drain, daemon=True).start()
    screen.touch()
    return Launched(process, run_dir, screen), master


ENDS = [
    "ctrl-c",
    "SIGTERM",
    "SIGTERM to the job",
    "SIGTERM to all",
    "down",
    "terminal closed",
    "hangup of the job",
    "SIGKILL",
]
CRASHES = ("SIGTERM to all", "SIGKILL")


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_and_the_run_resumes(start: Start, tmp_path: Path, end: str) -> None:
    options = (*SMALL_PEN, "--num-env-steps", "100000")
    if end == "terminal closed":
        run, terminal = in_a_terminal(tmp_path / "run", *options)
    else:
        run = start(*options)
    try:
        run.wait_until(lambda state: state.env_steps > 0)
        ports = known_ports(run)
        belongings = Belongings.of(run.process.pid)
        assert len(belongings.processes) > 10  # Ray's and the roles'
        assert belongings.ports >= ports
        if end == "ctrl-c":
            os.kill(run.process.pid, signal.SIGINT)
        elif end == "SIGTERM":
            os.kill(run.process.pid, signal.SIGTERM)
        elif end == "SIGTERM to the job":  # as `timeout` sends it: to Ray's own processes too, not to the roles
            os.killpg(run.process.pid, signal.SIGTERM)
        elif end == "SIGTERM to all":  # as systemd does by default; Redis and Ray end at once
            for process in belongings.processes:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
        elif end == "down":
            assert "stopped" in launcher("down", run.run_dir).stdout
        elif end == "terminal closed":
            os.close(terminal)
        elif end == "hangup of the job":  # as a shell whose terminal was closed: to all of its processes, Ray's too
            os.killpg(run.process.pid, signal.SIGHUP)
        else:
            kill(run.process.pid)
        assert run.wait() == (-signal.SIGKILL if end == "SIGKILL" else 0), run.output
    finally:
        if run.process.poll() is None:
            run.process.kill()
    assert_nothing_is_left(belongings, run.run_dir)
    stopped = run.summary()
    if end not in CRASHES:
        assert stopped["status"] == "stopped"
        assert stopped["unaccounted_steps"] == 0

    # After a crash the summary is the last one in time, and actors went on until they noticed.
    budget = max(800, stopped["env_steps"] + (4000 if end in CRASHES else 200))
    resumed = start("--restart-behavior", "resume", "--num-env-steps", str(budget))
    assert resumed.wait() == 0, resumed.output + resumed.logs()
    summary = resumed.summary()
    assert (summary["status"], summary["env_steps"], summary["unaccounted_steps"]) == ("finished", budget, 0)
    assert "resume proved: " in (run.run_dir / "logs" / "learner.log").read_text()


def test_down_ends_a_run_whose_redis_does_not_answer(start: Start) -> None:
    # Each role waits for a reply for longer than this, and is ended without one.
    run = start(*SMALL_PEN, "--num-env-steps", "100000", "--launcher.stop-grace-s", "10")
    run.wait_until(lambda state: state.env_steps >= 400 and state.checkpointed_grad_steps > 0)
    belongings, server = Belongings.of(run.process.pid), run.processes()["redis"]
    budget = run.state().env_steps + 4_000  # actors go on until they notice
    os.kill(server.pid, signal.SIGSTOP)
    try:
        down = launcher("down", run.run_dir)
    finally:
        with suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGCONT)  # else it would outlive a test that failed
    assert "asking by signal, because Redis cannot be asked" in down.stderr
    assert run.wait() == 0, run.output
    assert_nothing_is_left(belongings, run.run_dir)

    resumed = start("--restart-behavior", "resume", "--num-env-steps", str(budget))
    assert resumed.wait() == 0, resumed.output + resumed.logs()
    summary = resumed.summary()
    assert (summary["status"], summary["env_steps"]) == ("finished", budget)
    assert_sound(run.run_dir)


def test_a_resume_moves_to_another_port_when_a_program_has_taken_redis_s(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "600")
    assert run.wait() == 0, run.output
    connection = run.run_dir / "redis" / "connection.json"
    port = int(RedisEndpoint.load(connection).url.rpartition(":")[2])
    with ExitStack() as taken:
        with suppress(OSError):  # another program has it already, which is as good
            taken.enter_context(socket.create_server(("127.0.0.1", port)))
        resumed = start("--restart-behavior", "resume", "--num-env-steps", "900")
        assert resumed.wait() == 0, resumed.output + resumed.logs()
    assert int(RedisEndpoint.load(connection).url.rpartition(":")[2]) != port
    assert f"port {port} is taken by another program; Redis moves to port" in (
        run.run_dir / "logs" / "replay.log"
    ).read_text(encoding="utf-8")
    assert resumed.summary()["env_steps"] == 900
    assert resumed.summary()["unaccounted_steps"] == 0
