from __future__ import annotations

import torch

from benchmarks.gpu_update import plain_update
from benchmarks.learner_update import CPU, SPEC, filled_mirror
from learner.config import LearnerConfig
from learner.update import gradient_step, make_state


def test_the_peer_does_the_same_work() -> None:
    config = LearnerConfig(policy_hidden_sizes=(32, 32), critic_hidden_sizes=(32, 32))
    ours, plain = (make_state(config, SPEC, seed=0, device=CPU) for _ in range(2))
    mirror, update = filled_mirror(400), plain_update(plain, config)
    for _ in range(3):
        batch = mirror.sample(64, ours.generator, offline_fraction=None)
        mirror.sample(64, plain.generator, offline_fraction=None)
        gradient_step(ours, batch, config)
        update(batch)
    for part in ("policy", "critics", "target_critics"):
        for (name, one), other in zip(
            getattr(ours, part).named_parameters(), getattr(plain, part).parameters(), strict=True
        ):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6, msg=f"{part}.{name}")
