"""The commands of redis-py that this project uses, with the types that they really have here.

redis-py annotates every reply as a union over protocols, text decoding and async clients; our clients speak RESP2 and
return bytes (`connection.connect`), which these protocols say once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

Field = bytes | str | int | float
StreamRecord = tuple[bytes, dict[bytes, bytes]]
"""(entry id, fields) of a stream entry."""


class RedisScript(Protocol):
    """A Lua script that is sent once and then called by its hash."""

    def __call__(self, keys: Sequence[str], args: Sequence[Field]) -> Any:
        """Run the script; what it returns is its own affair."""


class RedisCommands(Protocol):
    """Commands that a pipeline queues and a client answers."""

    def hset(self, name: str, key: str | None = None, value: Field | None = None, *, mapping: Mapping[str, Field] = ...
             ) -> int:  # fmt: skip
        """Set fields of a hash."""

    def hincrby(self, name: str, key: str, amount: int = 1) -> int:
        """Add to an integer field."""

    def hget(self, name: str, key: str) -> bytes | None:
        """One field of a hash."""

    def hgetall(self, name: str) -> dict[bytes, bytes]:
        """All fields of a hash."""

    def xadd(self, name: str, fields: Mapping[str, Field], *, id: str = "*", maxlen: int | None = None,
             minid: str | None = None, approximate: bool = True) -> bytes:  # fmt: skip
        """Append to a stream."""

    def xrange(self, name: str, min: str = "-", max: str = "+", count: int | None = None) -> list[StreamRecord]:
        """Entries between two ids, oldest first."""

    def xrevrange(self, name: str, max: str = "+", min: str = "-", count: int | None = None) -> list[StreamRecord]:
        """Entries between two ids, newest first."""

    def hdel(self, name: str, *keys: str) -> int:
        """Remove fields."""

    def set(self, name: str, value: Field) -> bool:
        """Set a string."""


class RedisPipeline(RedisCommands, Protocol):
    """Commands sent together, as a transaction or not."""

    def execute(self) -> list[Any]:
        """Send what was queued; one reply a command."""


class RedisClient(RedisCommands, Protocol):
    """A connected client."""

    def hsetnx(self, name: str, key: str, value: Field) -> bool:
        """Set a field unless it exists."""

    def smembers(self, name: str) -> set[bytes]:
        """Members of a set."""

    def get(self, name: str) -> bytes | None:
        """A string."""

    def delete(self, *names: str) -> int:
        """Delete keys."""

    def xread(self, streams: Mapping[str, str], *, count: int | None = None, block: int | None = None
              ) -> list[tuple[bytes, list[StreamRecord]]]:  # fmt: skip
        """Entries after a cursor; `block` in milliseconds."""

    def xlen(self, name: str) -> int:
        """Number of entries."""

    def pipeline(self, *, transaction: bool) -> AbstractContextManager[RedisPipeline]:
        """Queue commands."""

    def register_script(self, script: str) -> RedisScript:
        """Prepare a Lua script."""

    def info(self, section: str) -> dict[str, Any]:
        """The server's own account of itself."""

    def ping(self) -> bool:
        """Ask whether anybody is there."""

    def close(self) -> None:
        """Give the connections back."""
