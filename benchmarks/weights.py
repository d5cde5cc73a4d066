"""How old is a policy when an actor begins to act by it, with 32 actors, and what does fetching it cost?

The actors are processes that do all that an actor does but the physics, in whose place they sleep: a chunk lasts as
long as it would for 32 actors on this machine's cores. They learn of a new version from the answer to an append, and
fetch it.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np

from actors.policy import NumpyPolicy
from benchmarks.actor_rate import some_weights
from benchmarks.arguments import take_no_arguments
from benchmarks.record import compared, report
from benchmarks.synthetic import CHUNK_STEPS, Service, random_trajectory, service
from benchmarks.timing import alternate, timer
from replay_service.policy_weights import PolicyWeights
from replay_service.trajectory_stream import TrajectoryWriter
from replay_service.weights_channel import WeightsChannel

ACTORS = 32
STEPS_A_SECOND = 4_000
"""Of one actor that has a core; `actor_rate` measures it."""
VERSIONS = 12
_PUBLISH_PERIOD_S = 1.0


def chunk_seconds() -> float:
    """Time between two messages of one of the actors."""
    return max(1.0, ACTORS / (os.cpu_count() or 1)) * CHUNK_STEPS / STEPS_A_SECOND


def act(where: Service, actor_id: int, period: float, pipe: Connection) -> None:
    """Append and follow the weights until told to end; then send the delays."""
    client = where.connect()
    channel = WeightsChannel(client, where.keys)
    writer = TrajectoryWriter(client, where.keys, where.run.spec, actor_id=actor_id)
    made = random_trajectory(actor_id, writer.register())
    draw = np.random.default_rng(actor_id)
    time.sleep(period * draw.uniform())
    pipe.send("ready")
    delays: list[float] = []
    version = sequence = 0
    while not pipe.poll():
        time.sleep(period * draw.uniform(0.9, 1.1))  # the physics
        origin = replace(made.origin, sequence=sequence, episode=sequence)
        admission = writer.append(replace(made, origin=origin), want_steps=CHUNK_STEPS)
        sequence += 1
        if admission.policy_version > version:
            weights = channel.fetch(fitting=where.run.spec)
            assert weights is not None
            version = NumpyPolicy(weights).version
            delays.append(time.time() - weights.published_unix_seconds)
    pipe.send(delays)


def delays_of_actors(where: Service, weights: PolicyWeights, period: float) -> list[float]:
    """Seconds from a publication until an actor acts by it."""
    context = multiprocessing.get_context("fork")
    members = []
    for actor_id in range(ACTORS):
        ours, theirs = context.Pipe()
        process = context.Process(target=act, args=(where, actor_id, period, theirs), daemon=True)
        process.start()
        members.append((process, ours))
    for _process, pipe in members:
        pipe.recv()
    channel = WeightsChannel(where.connect(), where.keys)
    for version in range(1, VERSIONS + 1):
        channel.publish(replace(weights, version=version, published_unix_seconds=time.time()))
        time.sleep(_PUBLISH_PERIOD_S)
    time.sleep(period)
    delays: list[float] = []
    for process, pipe in members:
        pipe.send("end")
        delays += pipe.recv()
        process.join()
    return delays


def main() -> None:
    take_no_arguments(__doc__)
    weights, period = some_weights(), chunk_seconds()
    with service() as where:
        delays = delays_of_actors(where, weights, period)
        client = where.connect()
        channel = WeightsChannel(client, where.keys)
        message = client.get(where.keys.weights)
        assert message is not None

        def fetch() -> None:
            found = channel.fetch(fitting=where.run.spec)
            assert found is not None
            NumpyPolicy(found)

        found = alternate(
            {"fetch": timer(fetch), "get": timer(lambda: client.get(where.keys.weights))}, rounds=20, repeats=50
        )
        client.close()
    report(compared(
        f"weights, published to applied, {ACTORS} actors, median", 1e3 * statistics.median(delays), "ms",
        against="time of one chunk", other=1e3 * period, less_is_better=True, target=1.0,
        note=f"{len(delays)} times; 99 of 100 within {1e3 * np.percentile(delays, 99):.0f} ms; in place of physics the "
        "actors sleep",
    ))  # fmt: skip
    report(compared(
        "weights, fetched, checked and ready to act", 1e6 * found["fetch"].best, "us", target=0.5,
        against=f"GET of the same {len(message) // 1024} KiB", other=1e6 * found["get"].best, less_is_better=True,
    ))  # fmt: skip


if __name__ == "__main__":
    main()
