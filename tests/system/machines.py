"""Machines for a test: namespaces of their own for network, processes, mounts and host name, joined by one switch.

What a machine has of its own: an address, a host name, a process table, `/tmp/ray`, `/dev/shm`, and a disk that is
mounted at the same path on each. Its programs die with it; its disk stays. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NETWORK = "10.0.0"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def why_not() -> str | None:
    """Why there can be no machines here, or None."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    return f"{', '.join(missing)} not found" if missing else None


class Machine:
    """One of them."""

    def __init__(self, number: int, switch: str, folder: Path, environment: dict[str, str], disk: str) -> None:
        self.address = f"{NETWORK}.{number}"
        self.name = f"node{number}"
        self._switch = switch
        self._port = f"port{number}"
        self._namespace = f"{switch}-{number}"
        self._environment = environment
        self.disk = folder / (disk or f"disk-{self.name}")
        self.mount = folder / "disk"
        (self.disk / "ray").mkdir(parents=True, exist_ok=True)
        self.mount.mkdir(exist_ok=True)
        ip("netns", "add", self._namespace)
        ip("-n", self._namespace, "link", "set", "lo", "up")
        ip("link", "add", "eth0", "netns", self._namespace, "type", "veth", "peer", self._port, "netns", switch)
        ip("-n", self._namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self._namespace, "link", "set", "eth0", "up")
        ip("-n", switch, "link", "set", self._port, "master", "switch0")
        ip("-n", switch, "link", "set", self._port, "up")
        self.boot()

    def boot(self) -> None:
        """Switch it on, with what is on its disk."""
        lines = (
            f"hostname {self.name}",
            "mkdir -p /tmp/ray",
            f"mount --bind {shlex.quote(str(self.disk))} {shlex.quote(str(self.mount))}",
            "mount -t tmpfs -o size=16m none /tmp/ray || exit 1",
            "mount -t tmpfs none /dev/shm",
            "echo up",
            # A shell collects those who die, as the first process of a machine does.
            "while true; do sleep 3600 & wait; done",
        )
        namespaces = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            ["ip", "netns", "exec", self._namespace, *namespaces, "bash", "-c", " && ".join(lines)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        with self._holder.stdout as said:
            assert said.readline() == "up\n"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self._init = int(children[0])

    def power_off(self) -> None:
        """All that runs on it is gone at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)  # the first process of a process namespace takes all others with it
        self._holder.wait()

    def remove(self) -> None:
        self.power_off()
        subprocess.run(["ip", "netns", "del", self._namespace], capture_output=True)

    def words(self, command: str) -> list[str]:
        """What runs a shell command on this machine, in the folder of its disk."""
        inside = f"cd {shlex.quote(str(self.mount))} && {command}"
        return ["nsenter", "-t", str(self._init), "--net", "--mount", "--uts", "--pid", "bash", "-c", inside]

    @property
    def environment(self) -> dict[str, str]:
        # `ray` and `launcher` are those of this interpreter, whether or not its environment is activated.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "HOME": str(self.mount), **self._environment}

    def run(self, command: str, timeout_s: float = 180.0) -> str:
        """Run a command to its end; returns what it printed."""
        done = subprocess.run(
            self.words(command), env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"{self.name}$ {command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, command: str, output: Path) -> subprocess.Popen[bytes]:
        """Start a command, with its output in a file."""
        with output.open("ab") as file:
            return subprocess.Popen(
                self.words(f"exec {command}"),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def pull_cable(self) -> None:
        ip("-n", self._switch, "link", "set", self._port, "down")

    def plug_in(self) -> None:
        ip("-n", self._switch, "link", "set", self._port, "up")

    def processes(self, words: str) -> list[int]:
        """Process ids on this machine whose command line has these words."""
        found = subprocess.run(self.words(f"pgrep -f -- {shlex.quote(words)}"), capture_output=True, text=True)
        return [int(line) for line in found.stdout.split()]


@contextlib.contextmanager
def machines(
    count: int, folder: Path, environment: dict[str, str], *, shared_disk: bool = False
) -> Iterator[list[Machine]]:
    """That many machines on one switch, numbered from 1; each with a disk of its own, or all with one."""
    disk = "disk-of-all" if shared_disk else ""
    switch = f"awac-{os.getpid()}-{time.monotonic_ns() % 10_000}"
    ip("netns", "add", switch)
    made: list[Machine] = []
    try:
        ip("-n", switch, "link", "add", "switch0", "type", "bridge")
        ip("-n", switch, "link", "set", "switch0", "up")
        for number in range(1, count + 1):
            made.append(Machine(number, switch, folder, environment, disk))  # noqa: PERF401 - those made so far are removed
        yield made
    finally:
        for machine in made:
            machine.remove()
        subprocess.run(["ip", "netns", "del", switch], capture_output=True)
