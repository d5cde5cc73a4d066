"""How many environment steps a second does the replay service take from 8 processes, ledger and all?

Beside plain XADD of the same bytes by the same processes to the same server, and beside what others store with:
TorchRL's storage in a Redis, and Reverb. Messages are whole episodes of 200 steps; the buffer does not
become full (what eviction costs is for `replay_scaling` to say).
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.arguments import take_no_arguments
from benchmarks.peer import Peer, PeerMissing, peer
from benchmarks.record import compared, limited, report, skipped
from benchmarks.synthetic import CHUNK_STEPS, Writers, random_trajectory, service
from replay_service import wire
from replay_service.connection import connect
from replay_service.redis_server import find_server, free_port

WRITERS = 8
LOWEST_RATE = 100_000
LOWEST_SHARE = 0.5
_ROUND_S = 2.0
_ROUNDS = 4
_PEER_CHUNKS = 5
_CAPACITY = 10_000_000


@contextlib.contextmanager
def open_redis() -> Iterator[int]:
    """A server without a password, for software that knows none; its port. Append-only file as ours."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port("127.0.0.1")
        arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "yes"]
        process = subprocess.Popen([find_server(), *arguments], stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            yield port
        finally:
            process.kill()
            process.wait()


def rate_of(peers: Sequence[Peer], chunks: int) -> float:
    """Environment steps a second of some peers that work at the same time.

    Raises:
        PeerMissing: one of them ended: the others had the machine to themselves, and their rate answers nothing.
    """
    with ThreadPoolExecutor(len(peers)) as asking:
        began = time.perf_counter()
        answers = [asking.submit(one.take, chunks) for one in peers]
        for answer in answers:
            answer.result()
        return len(peers) * chunks * CHUNK_STEPS / (time.perf_counter() - began)


def rates_of_peers(script: str, environment: str, arguments: list[str]) -> tuple[str, list[float]]:
    """Version and rates of a peer, as many processes of it as there are writers.

    Raises:
        PeerMissing: one of them did not start, or ended.
    """
    with ThreadPoolExecutor(WRITERS) as starters, contextlib.ExitStack() as stack:

        def start(index: int) -> Peer:
            return stack.enter_context(peer(script, *arguments, str(index), environment=environment))

        peers = list(starters.map(start, range(WRITERS)))
        rate_of(peers, 1)
        return peers[0].version, [rate_of(peers, _PEER_CHUNKS) for _ in range(_ROUNDS)]


def main() -> None:
    take_no_arguments(__doc__)
    name = f"append, {WRITERS} writers"
    with service(capacity=_CAPACITY) as where:
        writers = Writers(where, range(WRITERS))
        ledger: list[float] = []
        plain: list[float] = []
        delays: list[float] = []
        writers.run("append", 0.5)
        writers.run("xadd", 0.5)
        shares = []
        for _ in range(_ROUNDS):
            used, began = where.cpu_seconds(), time.monotonic()
            rate, took = writers.run("append", _ROUND_S)
            shares.append((where.cpu_seconds() - used) / (time.monotonic() - began))
            ledger.append(rate)
            delays += took
            plain.append(writers.run("xadd", _ROUND_S)[0])
        writers.close()
        client = connect(where.endpoint)
        stored = int(client.hget(where.keys.counters, "env_steps") or 0)
        client.close()
    mine, other = statistics.median(ledger), statistics.median(plain)
    bytes_a_step = len(wire.encode_trajectory(random_trajectory(0, 1))) / CHUNK_STEPS
    report(limited(
        name, mine, "env steps/s", at_least=LOWEST_RATE,
        note=f"{mine * bytes_a_step / 2**20:.0f} MiB/s, {stored:,} steps counted; the server takes "
        f"{statistics.median(shares):.0%} of a core; a message takes {1e3 * statistics.median(delays):.1f} ms",
    ))  # fmt: skip
    report(compared(f"{name}, against XADD", mine, "env steps/s", against="plain XADD of the same bytes", other=other,
                    target=LOWEST_SHARE))  # fmt: skip
    try:
        with open_redis() as port:
            version, rates = rates_of_peers("torchrl_redis", "peers", [str(port)])
        report(compared(f"{name}, against TorchRL", mine, "env steps/s", against=f"TorchRL {version} storage in Redis",
                        other=statistics.median(rates)))  # fmt: skip
    except PeerMissing as error:
        report(skipped(f"{name}, against TorchRL", str(error)))
    try:
        with peer("reverb_server", environment="reverb") as server:
            address = f"localhost:{server.ask('0')['port']:.0f}"
            version, rates = rates_of_peers("reverb_append", "reverb", [address])
        report(compared(f"{name}, against Reverb", mine, "env steps/s", against=f"Reverb {version}, an item a chunk",
                        other=statistics.median(rates)))  # fmt: skip
    except PeerMissing as error:
        report(skipped(f"{name}, against Reverb", str(error)))


if __name__ == "__main__":
    main()
