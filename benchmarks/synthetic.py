"""A replay service without a learner: an embedded Redis with an open run, and writers of random trajectories."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Literal

import numpy as np

from replay_service import wire
from replay_service.config import EnvironmentConfig, ReplayConfig, RunConfig
from replay_service.connection import RedisEndpoint, connect
from replay_service.experience import Origin, Trajectory
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.redis_server import EmbeddedRedis, find_server
from replay_service.run_state import Phase, RunStateStore
from replay_service.trajectory_stream import TrajectoryWriter

CHUNK_STEPS = 200
_ENDLESS = 10**12
_PLAIN_STREAM = "plain"

Mode = Literal["append", "xadd"]


@dataclass(frozen=True, slots=True)
class Service:
    """A running embedded Redis and the run in it."""

    redis: EmbeddedRedis
    run: RunConfig

    @property
    def endpoint(self) -> RedisEndpoint:
        """How to reach it."""
        return self.redis.endpoint

    @property
    def keys(self) -> Keys:
        """Of the run."""
        return Keys(self.run.run_id)

    def connect(self) -> RedisClient:
        """A new client."""
        return connect(self.endpoint)

    def cpu_seconds(self) -> float:
        """CPU time that the server has used."""
        return cpu_seconds(self.redis.process.pid)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, its threads included, to the nanosecond: /proc counts in ticks of 10 ms."""
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise ProcessLookupError(error, os.strerror(error), pid)
    return time.clock_gettime(clock.value)


@contextlib.contextmanager
def service(*, capacity: int = 1_000_000, max_memory_mb: int = 8192) -> Iterator[Service]:
    """Start a server as `launcher up` does, with a run in its online phase and no limit that matters."""
    run = RunConfig(
        env="relocate", run_id="benchmark", num_env_steps=_ENDLESS, initial_env_steps=_ENDLESS,
        environment=EnvironmentConfig(observation_dim=39, action_dim=30, max_episode_steps=CHUNK_STEPS),
        replay=ReplayConfig(capacity=capacity, max_memory_mb=max_memory_mb),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        redis = EmbeddedRedis.start(Path(folder) / "redis", server=find_server(), max_memory_mb=max_memory_mb)
        try:
            client = connect(redis.endpoint)
            store = RunStateStore(client, Keys(run.run_id))
            store.initialise(run)
            store.set_phase(Phase.ONLINE)
            client.close()
            yield Service(redis, run)
        finally:
            redis.stop()


def random_trajectory(actor_id: int, epoch: int, sequence: int = 0, *, steps: int = CHUNK_STEPS) -> Trajectory:
    """As a hand task's: one whole episode."""
    draw = np.random.default_rng((actor_id, sequence))
    return Trajectory(
        observations=draw.standard_normal((steps + 1, 39), dtype=np.float32),
        actions=draw.standard_normal((steps, 30), dtype=np.float32),
        rewards=-np.ones(steps, dtype=np.float32),
        terminated=False,
        truncated=True,
        origin=Origin(actor_id, epoch, sequence, 1, sequence, 0),
    )


class Writers:
    """Processes that append as fast as they are answered, or add the same bytes to a stream without any ledger."""

    def __init__(self, where: Service, actor_ids: Sequence[int]) -> None:
        context = multiprocessing.get_context("fork")
        self._members: list[tuple[ForkProcess, Connection]] = []
        for actor_id in actor_ids:
            ours, theirs = context.Pipe()
            process = context.Process(target=_write, args=(where, actor_id, theirs), daemon=True)
            process.start()
            self._members.append((process, ours))
        for _process, pipe in self._members:
            pipe.recv()

    def run(self, mode: Mode, seconds: float, *, chunks_a_second: float | None = None) -> tuple[float, list[float]]:
        """Let all write at once for a while.

        Args:
            mode: what they do.
            seconds: for how long.
            chunks_a_second: of each writer; None: as fast as they can.

        Returns:
            Environment steps a second of all together, and the seconds that each message took.
        """
        begin = time.monotonic() + 0.1
        for _process, pipe in self._members:
            pipe.send((mode, begin, begin + seconds, chunks_a_second))
        delays: list[float] = []
        for _process, pipe in self._members:
            delays += pipe.recv()
        elapsed = time.monotonic() - begin
        return CHUNK_STEPS * len(delays) / elapsed, delays

    def close(self) -> None:
        """End them."""
        for process, pipe in self._members:
            pipe.send(None)
            process.join()


def _write(where: Service, actor_id: int, pipe: Connection) -> None:
    client = where.connect()
    writer = TrajectoryWriter(client, where.keys, where.run.spec, actor_id=actor_id)
    epoch = writer.register()
    made = random_trajectory(actor_id, epoch)
    message = wire.encode_trajectory(made)
    sequence = 0
    pipe.send("ready")

    def append() -> None:
        nonlocal sequence
        origin = replace(made.origin, sequence=sequence, episode=sequence)
        writer.append(replace(made, origin=origin), want_steps=CHUNK_STEPS)
        sequence += 1

    def add() -> None:
        client.xadd(_PLAIN_STREAM, {"m": message}, maxlen=where.run.replay.capacity // CHUNK_STEPS)

    acts: dict[str, Callable[[], None]] = {"append": append, "xadd": add}
    while (task := pipe.recv()) is not None:
        mode, begin, end, rate = task
        act, delays = acts[mode], []
        time.sleep(max(0.0, begin - time.monotonic()))
        due = begin + (np.random.default_rng(actor_id).uniform() / rate if rate else 0.0)
        while (now := time.monotonic()) < end:
            if rate:
                if due > now:
                    time.sleep(min(due, end) - now)
                    continue
                due += 1.0 / rate
            asked = time.monotonic()
            act()
            delays.append(time.monotonic() - asked)
        pipe.send(delays)
