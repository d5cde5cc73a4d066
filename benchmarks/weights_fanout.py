"""What a publication of weights costs Redis, by the number of actors: `python -m benchmarks.weights_fanout`.

Real Redis, real messages of relocate's policy, real pools: processes that fork their actors, which look every 20 ms
whether there is a newer version and fetch it, each for itself or once a pool. A line for each number of actors and each
way: bytes that left Redis for one publication, and how long until the last actor had it. Pools stand for hosts. The two
ways take turns, a few publications each.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np

from actors.shared_weights import SharedWeights
from benchmarks.arguments import take_no_arguments
from benchmarks.record import Measurement, compared, limited, report
from replay_service import wire
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.policy_weights import PolicySpec, PolicyWeights
from replay_service.redis_server import EmbeddedRedis, find_server
from replay_service.weights_channel import WeightsChannel

FLEETS = ((1, 1), (32, 4), (256, 8))
"""(actors, pools)"""
ROUNDS = 4
PUBLICATIONS = 2
"""Of each way in each round."""
LOOK_EVERY_S = 0.02
LONGEST_WAIT_S = 60.0

_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the simulated actors share."""

    endpoint: RedisEndpoint
    keys: Keys
    published: Synchronized[int]
    arrived: Synchronized[int]


def policy(version: int) -> PolicyWeights:
    """A policy of relocate's size, with numbers of its own."""
    random = np.random.default_rng(version)
    spec = PolicySpec(39, 30, (256, 256))
    return PolicyWeights(
        spec=spec,
        version=version,
        grad_steps=version,
        env_steps=version,
        published_unix_seconds=time.time(),
        weights=tuple(random.standard_normal(shape, dtype=np.float32) for shape in spec.layer_shapes),
        biases=tuple(random.standard_normal(rows, dtype=np.float32) for rows, _ in spec.layer_shapes),
        log_std=random.standard_normal(30, dtype=np.float32),
    )


def actor(fleet: Fleet, slot: SharedWeights | None) -> None:
    """Follow the newest version until the parent ends this process."""
    channel, version = WeightsChannel(connect(fleet.endpoint), fleet.keys), 0
    while True:
        # An actor learns the number with each append; here it costs Redis nothing, so that weights alone are counted.
        newest = fleet.published.value
        if newest > version:
            message = channel.message() if slot is None else slot.newest(newest, channel.message)
            if message is not None:
                version = wire.decode_policy_weights(message).version
                with fleet.arrived.get_lock():
                    fleet.arrived.value += 1
        time.sleep(LOOK_EVERY_S)


def pool(fleet: Fleet, actors: int, shares: bool) -> None:
    """One host: its slot, and its actors below it."""
    slot = SharedWeights() if shares else None
    for child in [_FORK.Process(target=actor, args=(fleet, slot), daemon=True) for _ in range(actors)]:
        child.start()
    time.sleep(3600)


@dataclass(frozen=True, slots=True)
class Publications:
    """What some publications cost."""

    sent: list[int]
    """Bytes out of Redis."""
    seconds: list[float]
    """Until all actors had the version."""


def measure(redis: EmbeddedRedis, name: str, actors: int, pools: int, *, shares: bool) -> Publications:
    """Start a fleet under a name of its own, publish to it, and end it."""
    keys = Keys(name)
    fleet = Fleet(redis.endpoint, keys, _FORK.Value("i", 0), _FORK.Value("i", 0))
    client = connect(redis.endpoint)
    channel = WeightsChannel(client, keys)
    hosts = [_FORK.Process(target=pool, args=(fleet, actors // pools, shares)) for _ in range(pools)]
    for host in hosts:
        host.start()
    try:
        sent: list[int] = []
        seconds: list[float] = []
        for version in range(1, PUBLICATIONS + 2):
            channel.publish(policy(version))
            before = int(client.info("stats")["total_net_output_bytes"])
            began = time.monotonic()
            fleet.arrived.value = 0
            fleet.published.value = version
            while fleet.arrived.value < actors:
                if time.monotonic() - began > LONGEST_WAIT_S:
                    raise TimeoutError(f"{fleet.arrived.value} of {actors} actors have version {version}")
                time.sleep(0.002)
            seconds.append(time.monotonic() - began)
            sent.append(int(client.info("stats")["total_net_output_bytes"]) - before)
        return Publications(sent[1:], seconds[1:])  # the first also connects
    finally:
        for host in hosts:
            for child in Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
            host.kill()
            host.join()


def in_turns(redis: EmbeddedRedis, actors: int, pools: int) -> tuple[Publications, Publications]:
    """What publications cost when each actor fetches for itself, and when each pool does."""
    each, pooled = Publications([], []), Publications([], [])
    for index in range(ROUNDS):
        for way, shares in ((each, False), (pooled, True)):
            found = measure(redis, f"fanout-{actors}-{shares}-{index}", actors, pools, shares=shares)
            way.sent.extend(found.sent)
            way.seconds.extend(found.seconds)
    return each, pooled


def report_both(what: str, unit: str, each: Sequence[float], pooled: Sequence[float]) -> None:
    """The medians of both ways; once a pool stands beside each for itself."""
    one, other = statistics.median(each), statistics.median(pooled)
    report(limited(f"{what}_each", one, unit))
    report(compared(f"{what}_pool", other, unit, against=f"{what}_each", other=one, less_is_better=True))


def main() -> None:
    """Measure every fleet both ways."""
    take_no_arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        redis = EmbeddedRedis.start(Path(folder), server=find_server(), max_memory_mb=256)
        try:
            report(Measurement(name="weights_message", value=len(wire.encode_policy_weights(policy(1))), unit="bytes"))
            for actors, pools in FLEETS:
                each, pooled = in_turns(redis, actors, pools)
                where = f"{actors}_actors_{pools}_pools"
                report_both(f"publication_{where}", "bytes", each.sent, pooled.sent)
                report_both(f"arrival_{where}", "s", each.seconds, pooled.seconds)
        finally:
            redis.stop()


if __name__ == "__main__":
    main()
