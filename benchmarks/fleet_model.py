"""What would 1,000 and 10,000 actors need? A simulation with the constants of this machine; no such fleet was run.

The replay service's Redis is one server with one queue. Actors send a chunk of 200 steps when they have it and fetch
the weights when there are new ones; each message holds the server for the CPU time that it costs the server here.
Beside that stand what the learner needs to take the chunks in, and the bytes a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from actors.calibration import untrained_weights
from benchmarks.arguments import take_no_arguments
from benchmarks.record import limited, report
from benchmarks.synthetic import CHUNK_STEPS, random_trajectory, service
from benchmarks.timing import alternate, timer
from learner.mirror import ReplayMirror, n_step_transitions
from replay_service import wire
from replay_service.policy_weights import PolicyWeights
from replay_service.trajectory_stream import TrajectoryWriter
from replay_service.weights_channel import WeightsChannel

FLEETS = (100, 1_000, 10_000)
STEPS_A_SECOND = 400.0
"""Of one actor. A core makes some 4,000 of a hand task; most robots and simulators are slower."""
PUBLICATIONS_A_SECOND = 1.0
ACTORS_A_HOST = 64
_BUSY_AT_MOST = 0.7
_SIMULATED_S = 20.0
_MESSAGES = 3_000


@dataclass(frozen=True, slots=True)
class Constants:
    """Measured here."""

    append_s: float
    """Time of the server for an append."""
    fetch_s: float
    """Time of the server for handing out the weights."""
    take_in_s: float
    """Time of the learner for decoding a chunk and writing it to the mirror."""
    chunk_bytes: int
    weights_bytes: int


def measure() -> Constants:
    """Of one server with one client, so that nobody waits for anybody."""
    with service() as where:
        client = where.connect()
        writer = TrajectoryWriter(client, where.keys, where.run.spec, actor_id=0)
        epoch = writer.register()
        channel = WeightsChannel(client, where.keys)
        weights = untrained_weights(where.run.spec)
        channel.publish(PolicyWeights(
            spec=weights.spec, version=1, grad_steps=0, env_steps=0, published_unix_seconds=0.0,
            weights=weights.weights, biases=weights.biases, log_std=weights.log_std,
        ))  # fmt: skip
        made = [random_trajectory(0, epoch, sequence) for sequence in range(_MESSAGES)]

        def held(act: Callable[[], object]) -> float:
            before = where.cpu_seconds()
            for _ in range(_MESSAGES):
                act()
            return (where.cpu_seconds() - before) / _MESSAGES

        remaining = iter(made)
        # The server's whole CPU time of a message: reading, the command, the append-only file, the answer.
        append_s = held(lambda: writer.append(next(remaining), want_steps=CHUNK_STEPS))
        fetch_s = held(lambda: client.get(where.keys.weights))
        weights_bytes = len(client.get(where.keys.weights) or b"")
        client.close()
    message = wire.encode_trajectory(made[0])
    mirror = ReplayMirror(
        observation_dim=39, action_dim=30, seed_steps=0, capacity=1_000_000, evict_seed=True, device=torch.device("cpu")
    )
    position = 0

    def take_in() -> None:
        nonlocal position
        trajectory = wire.decode_trajectory(message)
        transitions = n_step_transitions(trajectory, n_step=1, discount=0.99, use_terminals=False)
        mirror.insert_online(transitions, first_step=position)
        position += CHUNK_STEPS

    take_in_s = alternate({"take in": timer(take_in)}, rounds=5, repeats=300)["take in"].best
    return Constants(append_s, fetch_s, take_in_s, len(message), weights_bytes)


def waits(constants: Constants, actors: int, fetchers: int, servers: int) -> tuple[float, float]:
    """Simulate one of the servers, with its share of the fleet.

    Returns:
        Share of the time that it is busy, and the 99th percentile of the seconds from a message's arrival to its
        answer; infinite where more comes in than goes out.
    """
    draw = np.random.default_rng(0)
    period = CHUNK_STEPS / STEPS_A_SECOND
    senders = math.ceil(actors / servers)
    rounds = np.arange(int(_SIMULATED_S / period))
    phases, jitter = draw.uniform(0, period, (senders, 1)), draw.normal(0, 0.05 * period, (senders, len(rounds)))
    appends = (phases + period * rounds + jitter).ravel()
    # All fetch within one chunk's time of a publication: when they hear of it.
    published = np.arange(int(_SIMULATED_S * PUBLICATIONS_A_SECOND)) / PUBLICATIONS_A_SECOND
    share = math.ceil(fetchers / servers)
    fetches = (published + draw.uniform(0, period, (share, 1))).ravel()
    arrivals = np.concatenate([appends, fetches])
    costs = np.concatenate([np.full(len(appends), constants.append_s), np.full(len(fetches), constants.fetch_s)])
    order = np.argsort(arrivals)
    arrivals, costs = arrivals[order], costs[order]
    busy = float(costs.sum() / _SIMULATED_S)
    if busy >= 1.0:
        return busy, math.inf
    # Lindley: a message is done at max(its arrival, the one before it done) + its cost.
    before = np.cumsum(costs) - costs
    done = np.maximum.accumulate(arrivals - before) + before + costs
    return busy, float(np.percentile(done - arrivals, 99))


def main() -> None:
    take_no_arguments(__doc__)
    torch.set_num_threads(1)
    constants = measure()
    for actors in FLEETS:
        chunks = actors * STEPS_A_SECOND / CHUNK_STEPS
        for per_host in (False, True):
            fetchers = math.ceil(actors / ACTORS_A_HOST) if per_host else actors
            rate = chunks * constants.append_s + fetchers * PUBLICATIONS_A_SECOND * constants.fetch_s
            servers = max(1, math.ceil(rate / _BUSY_AT_MOST))
            busy, delay = waits(constants, actors, fetchers, servers)
            weights_rate = fetchers * PUBLICATIONS_A_SECOND * constants.weights_bytes / 2**20
            taken_in = chunks * constants.take_in_s
            report(limited(
                f"simulated: {actors:,} actors, weights fetched by each {'host' if per_host else 'actor'}", servers,
                "servers",
                note=f"each {busy:.0%} busy, 99 of 100 messages answered in {1e3 * delay:.1f} ms; chunks "
                f"{chunks * constants.chunk_bytes / 2**20:.0f} MiB/s, weights {weights_rate:.0f} MiB/s; taking in: "
                f"{taken_in:.0%} of a learner's core; the server needs {1e6 * constants.append_s:.0f} us for an "
                f"append, {1e6 * constants.fetch_s:.0f} us for a fetch",
            ))  # fmt: skip


if __name__ == "__main__":
    main()
