"""TensorBoard event files, once for each x axis: TensorBoard itself offers only one beside the wall time.

tensorboard/by_env_steps    every point that has env steps behind it, and every evaluation
tensorboard/by_grad_steps   every point

tensorboardX makes the messages. Its writer is not used: it writes from a thread that a full disk ends in silence,
after which everyone who adds a point waits for ever.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from replay_service.points import Point

_FILE_VERSION = "brain.Event:2"


class EventFiles:
    """Writes points into event files; later sessions of a run add files of their own."""

    def __init__(self, folder: Path) -> None:
        self._by_env_steps = _EventFile(folder / "by_env_steps")
        self._by_grad_steps = _EventFile(folder / "by_grad_steps")

    def write(self, point: Point) -> None:
        """Take a point for both axes; `flush` puts it on the disk."""
        self._by_grad_steps.add(point.values, point.grad_steps, point.unix_seconds)
        # Pretraining has no env steps: all its points would lie on each other at 0.
        placed = {name: value for name, value in point.values.items() if point.env_steps or name.startswith("eval/")}
        if placed:
            self._by_env_steps.add(placed, point.env_steps, point.unix_seconds)

    def flush(self) -> None:
        """Put what was taken on the disk; called again after an error, it goes on where it stopped.

        Raises:
            OSError: for instance that the disk is full; nothing is lost.
        """
        self._by_env_steps.flush()
        self._by_grad_steps.flush()

    def close(self) -> None:
        """Flush, and write no more."""
        self._by_env_steps.close()
        self._by_grad_steps.close()


class _EventFile:
    """One file of records, made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._descriptor: int | None = None
        self._written = 0
        event = _messages().event
        self._pending = _record(event(wall_time=time.time(), file_version=_FILE_VERSION).SerializeToString())

    def add(self, values: Mapping[str, float], step: int, unix_seconds: float) -> None:
        messages = _messages()
        tagged = [messages.value(tag=name, simple_value=value) for name, value in values.items()]
        event = messages.event(wall_time=unix_seconds, step=step, summary=messages.summary(value=tagged))
        self._pending += _record(event.SerializeToString())

    def flush(self) -> None:
        if not self._pending:
            return
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        while self._pending:
            # What is left of a record that found no room is completed at the same place once there is some.
            written = os.pwrite(self._descriptor, self._pending, self._written)
            self._written += written
            self._pending = self._pending[written:]

    def close(self) -> None:
        self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Messages(NamedTuple):
    """What tensorboardX is needed for; without types of its own."""

    event: Any
    summary: Any
    value: Any
    checksum: Callable[[bytes], int]


@cache
def _messages() -> _Messages:
    # tensorboardX imports torch wherever it is installed and does not need it here: two seconds and 180 MB saved.
    is_hidden = "torch" not in sys.modules
    if is_hidden:
        sys.modules["torch"] = None  # type: ignore[assignment] # makes `import torch` an ImportError
    try:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import masked_crc32c
    finally:
        if is_hidden:
            del sys.modules["torch"]
    return _Messages(Event, Summary, Summary.Value, masked_crc32c)


def _record(data: bytes) -> bytes:
    """A TFRecord: length, checksum of the length, data, checksum of the data."""
    checksum = _messages().checksum
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", checksum(length)) + data + struct.pack("<I", checksum(data))
