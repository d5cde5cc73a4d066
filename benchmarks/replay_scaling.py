"""How do the costs of the replay service grow with writers, with registered actors and with transitions?

Writers append as fast as they are answered. What a message costs the server is the server's own count (`commandstats`);
what it costs the machine shows where more writers bring nothing more. `--full` goes to ten million transitions.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks.learner_update import filled_mirror
from benchmarks.record import limited, report
from benchmarks.synthetic import CHUNK_STEPS, Service, Writers, random_trajectory, service
from benchmarks.timing import alternate, timer
from replay_service import wire
from replay_service.reports import Reports
from replay_service.trajectory_stream import TrajectoryWriter

WRITERS = (1, 4, 16, 64, 256)
ACTORS = (1, 10, 100, 1_000)
TRANSITIONS = (10_000, 100_000, 1_000_000)
MOST_TRANSITIONS = 10_000_000
_ROUND_S = 1.5


def append_cost_us(where: Service, writers: Writers) -> float:
    """What the server itself counts for an append."""
    client = where.connect()

    def counted() -> tuple[int, int]:
        stats = client.info("commandstats")["cmdstat_evalsha"]
        return int(stats["usec"]), int(stats["calls"])

    before = counted()
    writers.run("append", _ROUND_S)
    after = counted()
    client.close()
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def by_writers() -> None:
    for count in WRITERS:
        with service() as where:
            writers = Writers(where, range(count))
            writers.run("append", 0.3)
            used, began = where.cpu_seconds(), time.monotonic()
            rate, delays = writers.run("append", _ROUND_S)
            share = (where.cpu_seconds() - used) / (time.monotonic() - began)
            writers.close()
        report(limited(
            f"append by {count} writer{'s' * (count > 1)}", rate, "env steps/s",
            note=f"a message takes {1e3 * statistics.median(delays):.2f} ms; the server {share:.0%} of a core",
        ))  # fmt: skip


def by_actors() -> None:
    with service() as where:
        client = where.connect()
        known = 0
        for count in ACTORS:
            for actor_id in range(known, count):
                TrajectoryWriter(client, where.keys, where.run.spec, actor_id=10_000 + actor_id).register()
            known = count
            writers = Writers(where, range(2))
            cost = append_cost_us(where, writers)
            writers.close()
            reports = Reports(client, where.keys)
            reading = alternate({"all": timer(reports.state_and_actors)}, rounds=5, repeats=5)["all"]
            report(limited(
                f"append with {count:,} registered actor{'s' * (count > 1)}", cost, "us of the server",
                note=f"reading every actor's ledger takes {1e3 * reading.best:.1f} ms",
            ))  # fmt: skip
        client.close()


def by_transitions(most: int) -> None:
    for count in (*TRANSITIONS, *((most,) if most > TRANSITIONS[-1] else ())):
        mirror = filled_mirror(count)
        generator = torch.Generator().manual_seed(0)
        found = alternate(
            {"sample": timer(lambda: mirror.sample(1024, generator, offline_fraction=None))},  # noqa: B023 - used at once
            rounds=6, repeats=100,
        )  # fmt: skip
        with service(capacity=count) as where:
            # Once full, every append also evicts.
            fill(where, count)
            writers = Writers(where, range(2))
            cost = append_cost_us(where, writers)
            writers.close()
            client = where.connect()
            memory = client.info("memory")["used_memory"]
            client.close()
        report(limited(
            f"append to a full buffer of {count:,}", cost, "us of the server",
            note=f"Redis holds {memory / 2**20:.0f} MiB, {memory / count:.0f} bytes a transition",
        ))  # fmt: skip
        report(limited(f"sample 1024 of a mirror of {count:,}", 1e6 * found["sample"].best, "us"))


def fill(where: Service, steps: int) -> None:
    """Append until the buffer is full, some hundred messages a round trip: counted as the service itself counts."""
    client = where.connect()
    message = wire.encode_trajectory(random_trajectory(0, 1))
    chunks = steps // CHUNK_STEPS
    for first in range(0, chunks, 500):
        with client.pipeline(transaction=False) as pipe:
            last = min(first + 500, chunks)
            for index in range(first, last):
                pipe.xadd(where.keys.online, {
                    "m": message, "a": 0, "e": 1, "s": index, "n": CHUNK_STEPS, "f": index * CHUNK_STEPS,
                })  # fmt: skip
            for field in ("appended_steps", "env_steps", "retained_steps"):
                pipe.hincrby(where.keys.counters, field, CHUNK_STEPS * (last - first))
            pipe.execute()
    client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=f"go to {MOST_TRANSITIONS:,} transitions: 8 GiB, minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    by_writers()
    by_actors()
    by_transitions(MOST_TRANSITIONS if arguments.full else TRANSITIONS[-1])


if __name__ == "__main__":
    main()
