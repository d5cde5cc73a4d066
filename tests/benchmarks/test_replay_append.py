"""What is measured of several processes at once is of all of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.peer import Peer, PeerMissing
from benchmarks.replay_append import rate_of
from benchmarks.synthetic import CHUNK_STEPS

CHUNK_S = 0.05
WORKING = f"""
import json, sys, time
for line in sys.stdin:
    time.sleep({CHUNK_S} * int(line))
    print(json.dumps({{"seconds": 1.0}}), flush=True)
"""
ENDING = "input(); raise SystemExit(3)"


@contextmanager
def peer(program: str) -> Iterator[Peer]:
    """A process that answers as those of `benchmarks/peers` do, or does not."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Peer(process)
        process.kill()


def test_the_rate_is_of_all_peers_in_the_time_of_all() -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(peer(WORKING)) for _ in range(2)]
        began = time.perf_counter()
        rate = rate_of(peers, 3)
        longest = time.perf_counter() - began
    steps = 2 * 3 * CHUNK_STEPS
    assert steps / longest <= rate <= steps / (3 * CHUNK_S)


def test_a_peer_that_ends_is_not_counted_as_if_it_had_worked() -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(peer(program)) for program in (WORKING, ENDING)]
        with pytest.raises(PeerMissing, match="it ended with exit code 3"):
            rate_of(peers, 1)
