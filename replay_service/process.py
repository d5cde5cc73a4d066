"""Life of a role process: signals, logs, death with its parent, its metrics endpoint.

Every role has the same spine: `startup`, then a loop that looks at `StopSignal`, then an orderly end.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, start_http_server
from redis.exceptions import NoPermissionError

from replay_service.connection import REFUSALS
from replay_service.errors import USER_ERROR_EXIT_CODE, ConfigError, ProtocolError, UserError

PARENT_VARIABLE = "AWAC_PARENT_PID"
"""Environment variable by which the launcher tells a role that it shall not outlive its parent."""

RESTARTED_VARIABLE = "AWAC_RESTARTED"
"""Environment variable by which the launcher tells a role that it replaces a crashed one."""

NODE_ADDRESS_VARIABLE = "AWAC_NODE_ADDRESS"
"""Environment variable by which the launcher tells a role the address of its node, as Ray and its peers know it."""

NODE = "node"
"""Instead of an interface: the address in AWAC_NODE_ADDRESS, or the loopback interface where there is none."""

METRICS_PORT_VARIABLE = "AWAC_METRICS_PORT"
"""Environment variable with the port of the metrics, for a process with an address of its own: a container."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: after a fork only the call itself is safe
_HIGHEST_PORT = 65_535
_WAIT_NOTICE_PERIOD_S = 10.0
_LOOPBACK = "127.0.0.1"
_WILDCARDS = ("0.0.0.0", "::", "")

_log = logging.getLogger(__name__)


class StopSignal:
    """Becomes true at SIGTERM or SIGINT; the second one ends the process at once.

    Args:
        twice_at_once: False where one request may come twice, as to a child whose whole group is told: whoever wants
            it gone sends SIGKILL.
    """

    def __init__(self, *, twice_at_once: bool = True) -> None:
        self._asked = False
        # Not an Event: a handler that runs while the main thread holds that one's lock would wait for it for ever.
        self._wake_up: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._twice_at_once = twice_at_once

    def install(self) -> None:
        """Catch SIGTERM and SIGINT in this process (main thread only)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})

    def set(self) -> None:
        """Ask for an orderly end."""
        self._asked = True
        self._wake_up.put(None)

    def is_set(self) -> bool:
        """Whether an orderly end was asked for."""
        return self._asked

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until an end is asked for; returns `is_set()`."""
        if not self._asked:
            with contextlib.suppress(queue.Empty):
                self._wake_up.get(timeout=max(0.0, seconds))
                self._wake_up.put(None)  # for the next one who waits
        return self._asked

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._asked and self._twice_at_once:
            os._exit(128 + number)
        self.set()


def die_with_parent(expected_parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies; elsewhere than Linux, a thread watches instead.

    Args:
        expected_parent: process id of the parent as it knew itself, to catch a death before this call.
    """
    parent = os.getppid() if expected_parent is None else expected_parent
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def die_with_launcher() -> None:
    """Call `die_with_parent` when the launcher's host process started this one; a role started by hand lives on."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        die_with_parent(int(parent))


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure_logging(role: str, log_path: Path | None = None) -> None:
    """Send this process's log to a file, or to stderr: one line a change of state."""
    handler: logging.Handler
    if log_path is None:
        handler = logging.StreamHandler()
    else:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(log_path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s {role} %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def serve_metrics(registry: CollectorRegistry, host: str) -> str:
    """Serve Prometheus metrics, this process's own memory, CPU time and file descriptors among them.

    The port is a free one, or that of AWAC_METRICS_PORT.

    Returns:
        `host:port`, as service discovery should name it; this machine's address or name where `host` means all
        interfaces.

    Raises:
        ConfigError: AWAC_METRICS_PORT is no port, or another process has it.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    ProcessCollector(registry=registry)
    interface, port = listening_host(host), _metrics_port()
    try:
        server, _thread = start_http_server(port, addr=interface, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"{METRICS_PORT_VARIABLE}: cannot listen on {interface}:{port}: {error.strerror}; leave the variable out "
            "where several processes share an address"
        ) from error
    return f"{advertised_host(host)}:{server.server_port}"


def _metrics_port() -> int:
    text = os.environ.get(METRICS_PORT_VARIABLE, "") or "0"
    if not (text.isdecimal() and int(text) <= _HIGHEST_PORT):
        raise ConfigError(
            f"{METRICS_PORT_VARIABLE}: expected a port from 0 (a free one) to {_HIGHEST_PORT}, got {text!r}"
        )
    return int(text)


def listening_host(host: str) -> str:
    """The interface that a setting means: `node` is the address of this machine in its cluster."""
    return os.environ.get(NODE_ADDRESS_VARIABLE, _LOOPBACK) if host == NODE else host


def advertised_host(host: str) -> str:
    """The address under which others reach what listens on `host`.

    Its own; for a wildcard, this machine's address in its cluster, or its name when it is in none.
    """
    if host in _WILDCARDS:
        return os.environ.get(NODE_ADDRESS_VARIABLE) or socket.gethostname()
    return listening_host(host)


def run_role(main: Callable[[], int]) -> int:
    """Run a role's main function and turn its errors into an exit code: 2 for mistakes that a restart cannot mend."""
    try:
        return main()
    except NoPermissionError as error:
        return _refuse(f"Redis refused a command for want of rights ({error}): see docs/security.md")
    except REFUSALS as error:
        return _refuse(f"Redis refused the credentials ({error}); no waiting mends that")
    except (UserError, ProtocolError) as error:
        return _refuse(str(error))
    except Exception:
        _log.exception("crashed")
        raise


def _refuse(text: str) -> int:
    _log.error("%s", text)
    print(f"error: {text}", file=sys.stderr)
    return USER_ERROR_EXIT_CODE


@dataclass(slots=True)
class WaitNotice:
    """Say every ten seconds who waits for whom, for as long as a wait lasts."""

    who: str
    period_s: float = _WAIT_NOTICE_PERIOD_S
    clock: Callable[[], float] = time.monotonic
    _since: float | None = None
    _last: float = 0.0

    def waiting(self, reason: str) -> None:
        """Note that the process still waits, and for what."""
        now = self.clock()
        if self._since is None:
            self._since = self._last = now
        elif now - self._last >= self.period_s:
            self._last = now
            _log.info("%s waits for %s since %.0f s", self.who, reason, now - self._since)

    @property
    def is_waiting(self) -> bool:
        """Whether a wait has begun and not ended."""
        return self._since is not None

    def done(self) -> float:
        """End the wait; returns its length in seconds."""
        waited = 0.0 if self._since is None else self.clock() - self._since
        self._since = None
        return waited


@dataclass(slots=True)
class RestartBudget:
    """How often a crashed process may be replaced, and how long to wait before each try.

    At most `limit` restarts within `window_s`; the pause doubles from `first_pause_s` to `longest_pause_s` with every
    restart that is still inside the window.
    """

    limit: int
    window_s: float
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    clock: Callable[[], float] = time.monotonic
    _times: deque[float] = field(default_factory=deque)

    def next_pause_s(self) -> float | None:
        """Take one restart out of the budget.

        Returns:
            Seconds to wait before it, or None when the budget is spent.
        """
        now = self.clock()
        while self._times and now - self._times[0] > self.window_s:
            self._times.popleft()
        if len(self._times) >= self.limit:
            return None
        self._times.append(now)
        return float(min(self.longest_pause_s, self.first_pause_s * 2 ** (len(self._times) - 1)))
