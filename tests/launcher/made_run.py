"""A run directory with real Redis data in it, made without training anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launcher.experiment import ExperimentConfig
from launcher.run_directory import RunDirectory
from replay_service.config import RunConfig
from replay_service.connection import connect
from replay_service.datasets import OfflineDataset
from replay_service.experience import Trajectory
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.redis_server import EmbeddedRedis, find_server
from replay_service.run_state import Phase, RunStateStore
from replay_service.seeding import seed
from replay_service.trajectory_stream import TrajectoryWriter


@contextmanager
def made_run(path: Path, config: ExperimentConfig) -> Iterator[tuple[RunDirectory, RedisClient]]:
    """Make the directory and start its Redis; the server is stopped, and its data stay, when the block ends."""
    path.mkdir()
    directory = RunDirectory(path)
    directory.write_config(config.to_toml())
    server = EmbeddedRedis.start(path / "redis", server=find_server(), max_memory_mb=512)
    server.endpoint.save(directory.connection)
    client = connect(server.endpoint)
    try:
        yield directory, client
        client.close()
    finally:
        server.stop()


_SERVICE = """
import sys
from pathlib import Path
from replay_service.data_lock import SERVICE_LOCK, data_lock
with data_lock(Path(sys.argv[1]), SERVICE_LOCK) as lock:
    lock.take()
    print("taken", flush=True)
    sys.stdin.read()
"""


@contextmanager
def service_at_work(run: RunDirectory) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the run as its replay service does, until the block ends."""
    run.connection.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _SERVICE, str(run.connection.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == b"taken\n"
        try:
            yield service
        finally:
            service.kill()


def fill_streams(client: RedisClient, run: RunConfig, online: Sequence[Trajectory], dataset: OfflineDataset | None
                 ) -> None:  # fmt: skip
    """Seed the run and append trajectories in order, each by the actor and with the sequence that it names."""
    keys = Keys(run.run_id)
    store = RunStateStore(client, keys)
    store.initialise(run)
    seed(client, keys, dataset)
    store.set_phase(Phase.ONLINE)
    writers: dict[int, TrajectoryWriter] = {}
    for trajectory in online:
        actor = trajectory.origin.actor_id
        if actor not in writers:
            writers[actor] = TrajectoryWriter(client, keys, run.spec, actor_id=actor)
            writers[actor].register()
        writers[actor].append(trajectory, want_steps=0)
