"""Reach a run's Redis from another process than its launcher: for status, and for the doctor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from launcher.run_directory import RunDirectory, await_last_roles
from launcher.snapshot import Snapshot, SnapshotReader
from replay_service.config import RunConfig
from replay_service.config_file import load_run_config
from replay_service.connection import RedisEndpoint, check, connect
from replay_service.errors import RunDirectoryError
from replay_service.keys import Keys
from replay_service.outage import outage_of
from replay_service.redis_client import RedisClient
from replay_service.redis_server import EmbeddedRedis, find_server, was_embedded


def snapshot_reader(directory: RunDirectory) -> SnapshotReader | None:
    """A reader of a run that is up, or None when its Redis does not answer yet or any more.

    Raises:
        RunDirectoryError: the file that leads to its Redis is damaged, or others can read it.
        OSError: that file cannot be read.
        redis.exceptions.RedisError: Redis refuses, and no waiting mends that.
    """
    try:
        endpoint = RedisEndpoint.load(directory.connection)
    except FileNotFoundError:
        return None
    reader = SnapshotReader(connect(endpoint, reply_timeout_s=5.0), Keys(load_run_config(directory.config).run_id))
    return reader if read_if_there(reader) is not None else None


def read_if_there(reader: SnapshotReader) -> Snapshot | None:
    """A reading of a run, or None while its Redis does not answer or does not hold the run (yet)."""
    try:
        return reader.read()
    except RunDirectoryError:
        return None
    except redis.exceptions.RedisError as error:
        if outage_of(error) is None:
            raise
        return None


@contextmanager
def redis_of(directory: RunDirectory, config: RunConfig) -> Iterator[RedisClient]:
    """A client of the run's Redis; that of a run which is not up is started on its data, and stopped again.

    Raises:
        RunDirectoryError: the run never came up, another command reads it, a launcher takes it meanwhile, or whether
            its roles are up cannot be seen from here.
        RedisUnavailable: its Redis does not answer.
    """
    if not directory.connection.exists():
        raise RunDirectoryError(f"{directory.path} has no Redis data: the run never came up")
    endpoint = RedisEndpoint.load(directory.connection)
    folder = directory.connection.parent
    if directory.holder() is not None or config.redis_url or not was_embedded(folder) or _keeps_roles(directory):
        check(endpoint)
        client = connect(endpoint)
        yield client
        client.close()
        return
    with directory.held(reads=True):
        server = EmbeddedRedis.start(
            folder,
            server=find_server(config.replay.server_path),
            max_memory_mb=config.replay.max_memory_mb,
            previous=endpoint,
            run_id=config.run_id,
            keep_port=False,
        )
        try:
            yield connect(server.endpoint)
        finally:
            server.stop()


def _keeps_roles(directory: RunDirectory) -> bool:
    await_last_roles(directory)
    return directory.has_roles()
