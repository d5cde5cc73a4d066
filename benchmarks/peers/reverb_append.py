"""A Reverb writer: 200 steps and an item over them, flushed: `reverb_append.py ADDRESS WRITER`."""

from __future__ import annotations

import sys
from importlib.metadata import version

import numpy as np
from serving import serve, unavailable

try:
    import reverb
except ImportError as error:
    unavailable(f"reverb: {error}")

STEPS = 200


def main() -> None:
    address, seed = sys.argv[1:]
    draw = np.random.default_rng(int(seed))
    observations = draw.standard_normal((STEPS, 39), dtype=np.float32)
    actions = draw.standard_normal((STEPS, 30), dtype=np.float32)
    rewards = np.zeros(STEPS, dtype=np.float32)
    client = reverb.Client(address)
    with client.trajectory_writer(num_keep_alive_refs=STEPS) as writer:

        def append() -> None:
            for index in range(STEPS):
                writer.append({"o": observations[index], "a": actions[index], "r": rewards[index]})
            history = {name: column[-STEPS:] for name, column in writer.history.items()}
            writer.create_item("chunks", priority=1.0, trajectory=history)
            writer.flush()

        serve(version("dm-reverb"), append)


if __name__ == "__main__":
    main()
