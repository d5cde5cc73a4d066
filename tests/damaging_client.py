"""A Redis client with the commands by which tests damage a run, none of which the project itself uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from replay_service.connection import REPLY_TIMEOUT_S, RedisEndpoint, connect
from replay_service.redis_client import Field, RedisClient, RedisPipeline


class DamagingPipeline(RedisPipeline, Protocol):
    """Commands sent together."""

    def delete(self, *names: str) -> int:
        """Delete keys."""

    def xtrim(self, name: str, *, maxlen: int, approximate: bool = True) -> int:
        """Keep the newest entries of a stream."""


class DamagingClient(RedisClient, Protocol):
    """What `connect` really gives: every command of Redis."""

    def pipeline(self, *, transaction: bool) -> AbstractContextManager[DamagingPipeline]:
        """Queue commands."""

    def xtrim(self, name: str, *, maxlen: int, approximate: bool = True) -> int:
        """Keep the newest entries of a stream."""

    def xdel(self, name: str, *ids: bytes | str) -> int:
        """Take entries out of a stream."""

    def sadd(self, name: str, *values: Field) -> int:
        """Add to a set."""

    def scan_iter(self, *, count: int | None = None) -> Iterator[bytes]:
        """Names of all keys."""

    def script_load(self, script: str) -> str:
        """Make a Lua script known."""

    def execute_command(self, *words: Field) -> Any:
        """Any command, word by word."""


def connect_damaging(endpoint: RedisEndpoint, *, reply_timeout_s: float = REPLY_TIMEOUT_S) -> DamagingClient:
    """A connected client, typed with all of its commands."""
    return cast(DamagingClient, connect(endpoint, reply_timeout_s=reply_timeout_s))
