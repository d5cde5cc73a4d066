"""Give the readers of messages a million hostile ones: `python -m tests.fuzz.messages --count 1000000 --seed 0`.

Every answer must be a value that was checked or the declared error; no message may cost much more memory than its own
length. Prints one line of JSON; exit code 1, with the seed and the number, at the first failure.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import tracemalloc
from collections import Counter

import numpy as np

from replay_service import wire
from replay_service.errors import WireError
from replay_service.experience import Trajectory
from replay_service.policy_weights import PolicyWeights
from replay_service.trajectory_stream import BadEntry, StreamEntry, parse_entry
from tests.fuzz.mutations import SPEC, Hostile, hostile

_MEASURED_EVERY = 50
_BYTES_ALLOWED = 256 * 1024
"""For decoding any message of this generator, the longest of which has some 20 KB."""
_LONGEST_REASON = 600


def examine(made: Hostile) -> str:
    """Give one message to every reader.

    Returns:
        What came of it: 'trajectory', 'weights' or 'refused', and 'entry' or 'bad entry'.

    Raises:
        AssertionError: a reader broke its promise.
    """
    outcome, reasons = "refused", []
    try:
        outcome = _sound_trajectory(wire.decode_trajectory(made.message), len(made.message))
    except WireError as error:
        reasons.append(str(error))
    try:
        outcome = _sound_weights(wire.decode_policy_weights(made.message), len(made.message))
    except WireError as error:
        reasons.append(str(error))
    assert all(len(reason) < _LONGEST_REASON for reason in reasons), "a reason as long as the message"
    entry = parse_entry("1-1", made.fields, SPEC)
    if isinstance(entry, BadEntry):
        assert 0 < len(entry.reason) < _LONGEST_REASON
        return f"{outcome}, bad entry"
    assert isinstance(entry, StreamEntry)
    assert entry.trajectory.problem(SPEC) is None
    assert all(np.isfinite(a).all() for a in (entry.trajectory.observations, entry.trajectory.rewards))
    assert 0 <= entry.first_step < 10**15
    stamped = (entry.trajectory.origin.actor_id, entry.trajectory.origin.epoch, entry.trajectory.origin.sequence)
    assert tuple(int(made.fields[name]) for name in (b"a", b"e", b"s")) == stamped
    return f"{outcome}, entry"


def _sound_trajectory(found: Trajectory, length: int) -> str:
    arrays = (found.observations, found.actions, found.rewards)
    assert sum(array.nbytes for array in arrays) <= length
    assert all(array.dtype == np.float32 for array in arrays)
    found.problem(SPEC)
    return "trajectory"


def _sound_weights(found: PolicyWeights, length: int) -> str:
    arrays = (*found.weights, *found.biases, found.log_std)
    assert sum(array.nbytes for array in arrays) <= length
    assert all(np.isfinite(array).all() for array in arrays)
    assert found.problem() is None
    found.misfit(SPEC.observation_dim, SPEC.action_dim)
    return "weights"


def measured(made: Hostile) -> str:
    """`examine`, with a look at the memory that it took at its height."""
    tracemalloc.start()
    try:
        outcome = examine(made)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < _BYTES_ALLOWED + 4 * len(made.message), f"{peak} bytes for a message of {len(made.message)}"
    return outcome


def run(count: int, seed: int, *, first: int = 0) -> Counter[str]:
    """Examine `count` messages; returns how many came out how."""
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        made = hostile(seed, number)
        try:
            outcomes[measured(made) if number % _MEASURED_EVERY == 0 else examine(made)] += 1
        except Exception:
            print(f"seed {seed}, message {number} ({made.kind}): {made.message[:200].hex()}", file=sys.stderr)
            raise
    return outcomes


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.messages")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first message, to repeat a failure")
    arguments = parser.parse_args()
    began = time.monotonic()
    outcomes = run(arguments.count, arguments.seed, first=arguments.first)
    row = {
        "name": "hostile messages without a broken promise",
        "count": arguments.count,
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "outcomes": dict(outcomes.most_common()),
    }
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
