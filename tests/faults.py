"""Faults of a real Redis that a test can bring about and take away again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

DISK_MB = 24
_WRITTEN_TIMEOUT_S = 30.0


def wait_until_written(admin: Any) -> None:
    """Wait until all that Redis has answered for is in its file: killed before, it may forget the last seconds."""
    deadline = time.monotonic() + _WRITTEN_TIMEOUT_S
    while True:
        found = admin.info("persistence")
        if found["aof_buffer_length"] == 0 and found["aof_pending_bio_fsync"] == 0:
            return
        assert time.monotonic() < deadline, f"Redis does not get its file written: {found}"
        time.sleep(0.02)


def listens(path: Path) -> bool:
    """Whether a server answers at a Unix socket, whose file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of a few MiB at `folder`; skips the test where nobody may mount one."""
    folder.mkdir(mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0700", "awac-test", str(folder)]
    if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only_view(folder: Path, view: Path) -> Iterator[Path]:
    """The same folder at another place, where nothing can be written; skips the test where nobody may mount one."""
    view.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a folder a second time needs root")
    if (done := subprocess.run(["mount", "--bind", str(folder), str(view)], capture_output=True, text=True)).returncode:
        pytest.skip(f"no folder can be mounted here: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(view)], check=True)
        yield view
    finally:
        subprocess.run(["umount", "--lazy", str(view)], check=True)


def bound_by_modes() -> list[str]:
    """What to put before a command that the modes of files are to bind, also as root; skips where it cannot be."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("binding root by the modes of files needs setpriv (util-linux)")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def fill(disk: Path) -> Path:
    """Fill a small disk to its last block; returns the file that does it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


@contextmanager
def no_memory(admin: Any) -> Iterator[None]:
    """Redis is above its memory limit and refuses writes."""
    limit = admin.config_get("maxmemory")["maxmemory"]
    admin.config_set("maxmemory", 1)
    try:
        yield
    finally:
        admin.config_set("maxmemory", limit)


@contextmanager
def full_disk(admin: Any, disk: Path) -> Iterator[None]:
    """The disk of the append-only file is full, and Redis has noticed."""
    filler = fill(disk)
    try:
        with pytest.raises(redis.exceptions.ResponseError, match="MISCONF"):
            _write_until_refused(admin)
        yield
    finally:
        filler.unlink()


def _write_until_refused(admin: Any) -> None:
    for _ in range(1_000):  # the file's last, partly free page takes some more
        admin.set("awac-test-filler", os.urandom(4096))


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """The server's process is stopped: connections are accepted by the kernel, and nobody replies."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


Fault = Callable[[], AbstractContextManager[None]]
