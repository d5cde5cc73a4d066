"""d3rlpy's AWAC: one batch sampled from its buffer and one update: `d3rlpy_awac.py BATCH WIDTH...`."""

from __future__ import annotations

import sys

import numpy as np
from serving import serve, unavailable

try:
    import d3rlpy
    from d3rlpy.models.encoders import VectorEncoderFactory
except ImportError as error:
    unavailable(f"d3rlpy: {error}")

OBSERVATION_DIM, ACTION_DIM, EPISODE_STEPS, EPISODES = 39, 30, 200, 250


def main() -> None:
    batch_size, *widths = (int(word) for word in sys.argv[1:])
    draw = np.random.default_rng(0)
    episodes = [
        d3rlpy.dataset.Episode(
            observations=draw.standard_normal((EPISODE_STEPS, OBSERVATION_DIM), dtype=np.float32),
            actions=draw.uniform(-1, 1, (EPISODE_STEPS, ACTION_DIM)).astype(np.float32),
            rewards=-np.ones((EPISODE_STEPS, 1), dtype=np.float32),
            terminated=False,
        )
        for _ in range(EPISODES)
    ]
    buffer = d3rlpy.dataset.create_infinite_replay_buffer(episodes=episodes)
    encoder = VectorEncoderFactory(list(widths))
    config = d3rlpy.algos.AWACConfig(
        batch_size=batch_size, actor_encoder_factory=encoder, critic_encoder_factory=encoder
    )
    algorithm = config.create(device="cpu:0")
    algorithm.create_impl((OBSERVATION_DIM,), ACTION_DIM)
    serve(d3rlpy.__version__, lambda: algorithm.update(buffer.sample_transition_batch(batch_size)))


if __name__ == "__main__":
    main()
