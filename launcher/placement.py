"""Run role programs on Ray: the only file that imports ray.

Each program gets one Ray actor, its *host*, on the node that Ray chooses; the host starts the program as a process of
its own and watches it. Only control goes through Ray: experience and weights go through Redis.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from launcher.program import RoleProgram
from launcher.supervisor import PlacementFailed
from replay_service.errors import ConfigError
from replay_service.process import PARENT_VARIABLE

_OBJECT_STORE_BYTES = 80 * 2**20
_CALL_TIMEOUT_S = 30.0
_LOST_EXIT_CODE = -1
_PLACEMENT_NOTICE_S = 10.0
_PLACEMENT_TIMEOUT_S = 300.0


class RoleHost:
    """Runs inside a Ray worker: one role process and its life."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, arguments: tuple[str, ...], environment: dict[str, str], log_path: str) -> int:
        """Start the process; its output is appended to the log file.

        Returns:
            Its process id.
        """
        Path(log_path).parent.mkdir(parents=True, exist_ok=True)
        # Ray limits its workers to one OpenMP thread; a learner on the CPU needs all.
        inherited = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        with Path(log_path).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**inherited, **environment, PARENT_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code of the process, or None while it runs."""
        return self._process.poll() if self._process is not None else None

    def stop(self, grace_s: float) -> int | None:
        """Ask the process to end, and kill it after the grace; returns its exit code."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        return self._process.returncode


class RolePlacement:
    """Starts, watches and stops role programs on a Ray cluster, local or remote."""

    def __init__(
        self,
        *,
        address: str,
        num_cpus: float,
        say: Callable[[str], None] = lambda _text: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connect to a cluster, or start a private one on this machine with enough logical CPUs for the run.

        Args:
            address: of the cluster; '' starts a private one.
            num_cpus: CPUs that the run's programs reserve together.
            say: shows the user what is waited for.
            should_stop: ends a wait.

        Raises:
            ConfigError: no Ray cluster answers at the address.
        """
        self._hosts: dict[str, Any] = {}
        self._say = say
        self._should_stop = should_stop
        self._host_class: Any = ray.remote(RoleHost)
        logging.getLogger("ray").setLevel(logging.ERROR)
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        # Ray announces itself on both streams; a user's first screen is ours.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if address:
                try:
                    ray.init(address=address, **quiet)
                except (ConnectionError, ValueError, RuntimeError) as error:
                    raise ConfigError(
                        f"launcher.ray_address: no Ray cluster answers at {address!r} ({error}); "
                        "start one with `ray start --head`, or leave the option out"
                    ) from error
                return
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, int(num_cpus) + 1),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **quiet,
            )

    @staticmethod
    def shutdown() -> None:
        """Leave the cluster; a private one ends."""
        ray.shutdown()

    @staticmethod
    def num_nodes() -> int:
        """Living nodes of the cluster."""
        nodes: Any = ray.nodes  # untyped in ray
        return sum(bool(node["Alive"]) for node in nodes())

    def has_gpu(self) -> bool:
        """Whether any node of the cluster has a GPU."""
        resources: Any = ray.cluster_resources  # untyped in ray
        return bool(resources().get("GPU", 0.0) >= 1.0)

    def start(self, program: RoleProgram, environment: dict[str, str]) -> int:
        """Place a program and start it.

        Returns:
            Its process id, on the node that Ray chose.

        Raises:
            PlacementFailed: no node had room for it in time, Ray failed, or a stop was asked for.
        """
        self.discard(program.name)
        host = self._host_class.options(num_cpus=program.num_cpus, num_gpus=program.num_gpus, max_restarts=0).remote()
        self._hosts[program.name] = host
        started = host.start.remote(program.arguments, environment, str(program.log_path))
        deadline = time.monotonic() + _PLACEMENT_TIMEOUT_S
        while True:
            try:
                pid: int = ray.get(started, timeout=_PLACEMENT_NOTICE_S)
            except ray.exceptions.GetTimeoutError as error:
                asked = f"{program.name} asks for {program.num_cpus:g} CPUs and {program.num_gpus:g} GPUs on one node"
                available: Any = ray.available_resources  # untyped in ray
                free = available()
                room = f"free in the whole cluster are {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"
                if self._should_stop() or time.monotonic() > deadline:
                    self.discard(program.name)
                    raise PlacementFailed(f"{asked}; {room}") from error
                self._say(f"waiting for Ray to place it: {asked}; {room}")
            except ray.exceptions.RayError as error:
                self.discard(program.name)
                raise PlacementFailed(f"Ray could not start {program.name}: {error}") from error
            else:
                return pid

    def poll(self, name: str) -> int | None:
        """Exit code of a program, None while it runs, -1 when its host is gone."""
        host = self._hosts.get(name)
        if host is None:
            return _LOST_EXIT_CODE
        try:
            code: int | None = ray.get(host.poll.remote(), timeout=_CALL_TIMEOUT_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return _LOST_EXIT_CODE
        return code

    def stop(self, name: str, grace_s: float) -> int | None:
        """End a program in order, or kill it after the grace."""
        host = self._hosts.get(name)
        if host is None:
            return None
        try:
            code: int | None = ray.get(host.stop.remote(grace_s), timeout=grace_s + _CALL_TIMEOUT_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            code = _LOST_EXIT_CODE
        self.discard(name)
        return code

    def discard(self, name: str) -> None:
        """Forget a program's host; a process that still runs below it dies with it."""
        host = self._hosts.pop(name, None)
        if host is not None:
            ray.kill(host)
