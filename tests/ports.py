"""Ports for what a test starts a while after it has chosen them."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

_FIRST, _EACH, _WORKERS = 20_000, 1_000, 12
"""Between the ports of Ray's workers and those from which the kernel takes one when a program leaves it the choice."""
_turns = itertools.count(os.getpid())  # so that two sessions of tests seldom choose the same


def free_port() -> int:
    """A port of the loopback interface at which nobody listens, and which no other test is given soon."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    for turn in itertools.islice(_turns, _EACH):
        port = _FIRST + worker * _EACH + turn % _EACH
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"every port from {_FIRST + worker * _EACH} on is taken")
