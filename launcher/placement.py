"""Run role programs on Ray: the only file that imports ray.

Each program gets one Ray actor, its *host*, on the node that Ray chooses; the host starts the program as a process of
its own and watches it. Only control goes through Ray: experience and weights go through Redis.

The replay service runs on the node of the launcher, where the run directory is; the learner beside it when there is
room, or on a node with a GPU; the others are spread. Every node keeps its own part of the run directory, under the same
path: a role that was placed elsewhere finds the configuration there, and writes its log there. When it ends, the end of
that log is copied to the launcher's.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launcher.capacity import Node
from launcher.interrupts import keeping_hangups_from_children
from launcher.learner_node import LearnerNode, NotedNode, checkpoints_in
from launcher.program import RoleProgram
from launcher.run_directory import RunDirectory
from launcher.supervisor import LOST_EXIT_CODE, PlacementFailed
from replay_service.access import Role
from replay_service.errors import AwacError, ConfigError
from replay_service.process import NODE_ADDRESS_VARIABLE, PARENT_VARIABLE

_OBJECT_STORE_BYTES = 80 * 2**20
_CALL_TIMEOUT_S = 30.0
_LOG_TAIL_BYTES = 64 * 1024
_PIN = 0.001
"""Share of a node's own resource that keeps a program on that node."""
_LOOK_EVERY_S = 1.0
_BESIDE_S = 3.0
"""How long Ray may take to find room for the learner beside the replay service before it may go elsewhere."""


class RayUnavailable(AwacError):
    """A Ray of this machine's own did not start."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What a role needs of the run directory, for nodes that do not share it."""

    path: str
    config: str
    lock: str
    """Text of the launcher's lock: a node that reads the same one shares the run directory."""

    @staticmethod
    def of(run: RunDirectory) -> RunFiles:
        """Those of a run that this process holds."""
        root = run.path.resolve()
        return RunFiles(str(root), run.config.read_text(encoding="utf-8"), run.lock.read_text(encoding="utf-8"))

    def unfold(self) -> bool:
        """Write the configuration below the same path here, unless the directory is shared; returns whether it is."""
        run = RunDirectory(Path(self.path))
        with contextlib.suppress(OSError):
            if run.lock.read_text(encoding="utf-8") == self.lock:
                return True
        run.path.mkdir(parents=True, exist_ok=True)
        partial = run.config.with_suffix(f".{os.getpid()}.partial")  # several hosts of this node write it
        partial.write_text(self.config, encoding="utf-8")
        partial.replace(run.config)
        return False


@dataclass(frozen=True, slots=True)
class Started:
    """A role process that was started."""

    pid: int
    node: str
    shares_directory: bool
    has_checkpoints: bool
    """Whether the run directory there has checkpoints of a learner."""


def _own_address() -> str:
    """Address of this node, as Ray knows it."""
    address: Any = ray.util.get_node_ip_address  # untyped in ray
    return str(address())


class RoleHost:
    """Runs inside a Ray worker: one role process and its life."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log_path = Path()
        self._log_start = 0

    def start(self, arguments: tuple[str, ...], environment: dict[str, str], log_path: str, files: RunFiles) -> Started:
        """Start the process; its output is appended to the log file of this node."""
        shares = files.unfold()
        self._log_path = Path(log_path)
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        address = _own_address()
        # Ray limits its workers to one OpenMP thread; a learner on the CPU needs all.
        inherited = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        own = {PARENT_VARIABLE: str(os.getpid()), NODE_ADDRESS_VARIABLE: address}
        has_checkpoints = bool(checkpoints_in(RunDirectory(Path(files.path)).checkpoints))
        with self._log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**inherited, **environment, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Started(self._process.pid, address, shares, has_checkpoints)

    def poll(self) -> int | None:
        """Exit code of the process, or None while it runs."""
        return self._process.poll() if self._process is not None else None

    def log_tail(self) -> bytes:
        """The end of what this process has logged; the file may hold the logs of those before it."""
        with self._log_path.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            return log.read()

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


@dataclass(slots=True)
class _Hosted:
    program: RoleProgram
    environment: dict[str, str]
    host: Any = None
    """None: held back until the learner has room."""
    start: Any = None
    """Ray's reference to the answer of `RoleHost.start`."""
    started: Started | None = None
    poll: Any = None
    """Reference to the answer of a `RoleHost.poll` that is on its way."""
    poll_since: float = 0.0


class RolePlacement:
    """Starts, watches and stops role programs on a Ray cluster, local or remote."""

    def __init__(self, *, address: str, num_cpus: float, files: RunFiles, learner_node: LearnerNode) -> None:
        """Connect to a cluster, or start a private one on this machine with enough logical CPUs for the run.

        Args:
            address: of the cluster; '' starts a private one.
            num_cpus: CPUs that the run's programs reserve together.
            files: what is handed to the nodes.
            learner_node: where the learner's node is noted.

        Raises:
            ConfigError: no Ray cluster answers at the address, or it refuses the token.
            RayUnavailable: a private one did not start.
        """
        self._files = files
        self._hosted: dict[str, _Hosted] = {}
        self._rooms: dict[Role, Any] = {}
        """Placement groups of one bundle: what a program left stays free for the one that comes in its place."""
        self._learner_node = learner_node
        self._learner_pin = ""
        self._room_seen: Any = None
        """The learner's placement group once Ray has found room for it."""
        self._room_asked = 0.0
        self._stay_home = False
        self._host_class: Any = ray.remote(RoleHost)
        logging.getLogger("ray").setLevel(logging.ERROR)
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        # Ray announces itself on both streams; a user's first screen is ours.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if address:
                try:
                    ray.init(address=address, **quiet)
                except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
                    raise ConfigError(
                        f"launcher.ray_address: no Ray cluster answers at {address!r} ({error}); "
                        "start one with `ray start --head`, or leave the option out; a cluster with a token wants it "
                        "in RAY_AUTH_TOKEN_PATH here too"
                    ) from error
            else:
                try:
                    with keeping_hangups_from_children():
                        ray.init(
                            address="local",
                            num_cpus=max(os.cpu_count() or 1, int(num_cpus) + 1),
                            include_dashboard=False,
                            object_store_memory=_OBJECT_STORE_BYTES,
                            **quiet,
                        )
                except Exception as error:  # of any kind: Ray has none of its own for this
                    with contextlib.suppress(Exception):
                        ray.shutdown()
                    raise RayUnavailable(
                        f"Ray did not start on this machine ({error}): it needs memory, free ports, within half a "
                        "minute some CPU time, and a folder with room for its files, /tmp/ray unless RAY_TMPDIR names "
                        "another; its logs are there, below session_latest"
                    ) from error
        self.home = _own_address()

    def shutdown(self) -> None:
        """Leave the cluster, which then takes back the run's room; a private one ends.

        Nothing is asked of it: a signal to the whole process group may have ended it before us, and Ray would wait a
        minute for an answer, then end this process.
        """
        ray.shutdown()

    @staticmethod
    def nodes() -> list[Node]:
        """Living nodes of the cluster."""
        nodes: Any = ray.nodes  # untyped in ray
        return [
            Node(
                str(node["NodeManagerAddress"]),
                float(node["Resources"].get("CPU", 0.0)),
                float(node["Resources"].get("GPU", 0.0)),
            )
            for node in nodes()
            if node["Alive"]
        ]

    def free(self) -> str:
        """What is free in the whole cluster, and what that may not do, in words."""
        available: Any = ray.available_resources  # untyped in ray
        free = available()
        text = f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free in the whole cluster"
        tied = self._learner_pin and self._learner_pin != self.home
        return (
            f"{text}; the learner's checkpoints are on {self._learner_pin}, so it starts there alone" if tied else text
        )

    def reserve(self, programs: Sequence[RoleProgram], *, stay_home: bool, beside: bool) -> None:
        """Ask for room for the replay service, here, and for the learner, beside it when that is possible.

        Args:
            programs: of the run.
            stay_home: keep all programs on this node, because Redis listens on its loopback interface alone.
            beside: whether there is room for all programs with the learner on this node.
        """
        self._stay_home = stay_home
        (replay,) = (p for p in programs if p.role is Role.REPLAY)
        (learner,) = (p for p in programs if p.role is Role.LEARNER)
        self._rooms[Role.REPLAY] = self._room(replay, self.home)
        self._learner_pin = self.home if stay_home else learner.node
        if beside and not self._learner_pin:
            room = self._room(learner, self.home)
            if room.wait(_BESIDE_S):
                self._rooms[Role.LEARNER] = self._room_seen = room
                return
            remove_placement_group(room)
        self._rooms[Role.LEARNER] = self._room(learner, self._learner_pin)

    @staticmethod
    def _room(program: RoleProgram, node: str) -> Any:
        asked = {"CPU": program.num_cpus, "GPU": program.num_gpus, **({f"node:{node}": _PIN} if node else {})}
        return placement_group([{name: amount for name, amount in asked.items() if amount} or {"CPU": _PIN}])

    def _follow_checkpoints(self, learner: RoleProgram) -> None:
        """Tie a learner that is started again to the node where its checkpoints are."""
        noted = self._learner_node.read()
        if noted and noted.address != self._learner_pin and Role.LEARNER in self._rooms:
            remove_placement_group(self._rooms[Role.LEARNER])
            self._rooms[Role.LEARNER] = self._room(learner, noted.address)
            self._learner_pin = noted.address

    def start(self, program: RoleProgram, environment: dict[str, str]) -> int | None:
        """Ask Ray for a place for a program, where it starts at once.

        Returns:
            None: `placed` tells when and whether it has started.
        """
        self.discard(program.name)
        if program.role is Role.LEARNER:
            self._follow_checkpoints(program)
            self._room_seen = None  # Ray takes the room back when its node dies, and then looks for another
            for other in self._hosted.values():
                self._hold_back(other)
        hosted = self._hosted[program.name] = _Hosted(program, environment)
        self._ask(hosted)
        return None

    def _ask(self, hosted: _Hosted) -> None:
        """Ask Ray for a host, unless that could take the learner's place: without one nobody has anything to do."""
        program = hosted.program
        if program.role not in self._rooms and not self._learner_has_room():
            return
        hosted.host = self._host_class.options(**self._wishes(program)).remote()
        files = (str(program.log_path), self._files)
        hosted.start = hosted.host.start.remote(program.arguments, hosted.environment, *files)

    def _hold_back(self, hosted: _Hosted) -> None:
        """Take back the question of a program that waits for room, until the learner has some."""
        if hosted.program.role in self._rooms or hosted.host is None or hosted.started is not None:
            return
        ready, _ = ray.wait([hosted.start], timeout=0)
        if not ready:
            ray.kill(hosted.host)
            hosted.host = hosted.start = None

    def _learner_has_room(self) -> bool:
        room, now = self._rooms.get(Role.LEARNER), time.monotonic()
        if room is None or room is self._room_seen:
            return True
        # Ray is asked once a second, whatever the number of programs that want to know.
        if now - self._room_asked >= _LOOK_EVERY_S:
            self._room_asked = now
            # `room.wait` would not do: it takes whole seconds, and less than one is none at all.
            table: Any = placement_group_table  # untyped in ray
            if table(room)["state"] == "CREATED":
                self._room_seen = room
        return room is self._room_seen

    def _wishes(self, program: RoleProgram) -> dict[str, Any]:
        wishes: dict[str, Any] = {"num_cpus": program.num_cpus, "num_gpus": program.num_gpus, "max_restarts": 0}
        if program.role in self._rooms:
            room = PlacementGroupSchedulingStrategy(self._rooms[program.role], placement_group_bundle_index=0)
            return wishes | {"scheduling_strategy": room}
        if self._stay_home:
            return wishes | {"resources": {f"node:{self.home}": _PIN}}
        return wishes | {"scheduling_strategy": "SPREAD"}

    def placed(self, name: str) -> int | None:
        """Process id of a program, on the node that Ray chose, or None while there is no room for it.

        Raises:
            PlacementFailed: its node or Ray failed meanwhile.
            ConfigError: it is the learner, on a node without the checkpoints that are here.
        """
        hosted = self._hosted[name]
        if hosted.host is None:
            self._ask(hosted)
            if hosted.host is None:
                return None
        if hosted.started is None:
            ready, _ = ray.wait([hosted.start], timeout=0)
            if not ready:
                return None
            try:
                hosted.started = ray.get(hosted.start)
            except ray.exceptions.RayError as error:
                self.discard(name)
                raise PlacementFailed(f"Ray could not start {name}: {error}") from error
            if hosted.program.role is Role.LEARNER:
                self._note_learner(hosted.program, hosted.started)
        return hosted.started.pid

    def _note_learner(self, learner: RoleProgram, started: Started) -> None:
        if started.shares_directory:
            self._learner_node.forget()
        elif started.has_checkpoints or not self._learner_node.has_checkpoints_here:
            self._learner_node.note(NotedNode(started.node, learner.num_gpus))
        else:
            raise ConfigError(
                f"the learner was placed on {started.node}, where this run has no checkpoints: they are on "
                f"{self.home}, in {self._files.path}/checkpoints. Copy them to the same path there, or go on here, "
                "with --device cpu if this machine has no GPU"
            )

    def poll(self, name: str) -> int | None:
        """Exit code of a program, None while it runs or its node is silent for a while, -1 when its host is gone."""
        hosted = self._hosted.get(name)
        if hosted is None:
            return LOST_EXIT_CODE
        if hosted.poll is None:
            hosted.poll, hosted.poll_since = hosted.host.poll.remote(), time.monotonic()
        # The answer is fetched at the next look: a node that is cut off must not keep the others waiting.
        ready, _ = ray.wait([hosted.poll], timeout=0)
        if not ready:
            return LOST_EXIT_CODE if time.monotonic() - hosted.poll_since > _CALL_TIMEOUT_S else None
        try:
            code: int | None = ray.get(hosted.poll)
        except ray.exceptions.RayError:
            return LOST_EXIT_CODE
        hosted.poll = None
        if code is not None:
            self._bring_log(hosted)
        return code

    def _bring_log(self, hosted: _Hosted) -> None:
        started = hosted.started
        if started is None or started.shares_directory:
            return
        with contextlib.suppress(ray.exceptions.RayError, OSError):
            tail = ray.get(hosted.host.log_tail.remote(), timeout=_CALL_TIMEOUT_S)
            with hosted.program.log_path.open("ab") as log:
                log.write(f"--- from {started.node}:\n".encode() + tail)

    def stop(self, name: str, grace_s: float) -> int | None:
        """End a program in order, or kill it after the grace."""
        hosted = self._hosted.get(name)
        if hosted is None:
            return None
        code: int | None = None
        if hosted.started is not None:  # one that still waits for room has no process
            try:
                code = ray.get(hosted.host.stop.remote(grace_s), timeout=grace_s + _CALL_TIMEOUT_S)
                self._bring_log(hosted)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                code = LOST_EXIT_CODE
        self.discard(name)
        return code

    def discard(self, name: str) -> None:
        """Forget a program's host; a process that still runs below it dies with it."""
        hosted = self._hosted.pop(name, None)
        if hosted is not None and hosted.host is not None:
            ray.kill(hosted.host)
