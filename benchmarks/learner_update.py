"""How much slower is one AWAC update, sampling included, than its own matrix products?

The products are timed alone, in the same shapes and number, in the same process: forward and both backward products of
every layer that is trained, forward alone of those that are not.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the learner runs

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.record import Measurement, report
from learner.config import LearnerConfig
from learner.matrix_products import prefer_onednn
from learner.mirror import ReplayMirror, Transitions
from learner.update import gradient_step, make_state
from replay_service.experience import ExperienceSpec

SPEC = ExperienceSpec("relocate", 39, 30, 200)
SIZES = {"batch 256, 2x256": (256, (256, 256)), "batch 1024, 4x256": (1024, (256, 256, 256, 256))}


def filled_mirror(transitions: int) -> ReplayMirror:
    mirror = ReplayMirror(observation_dim=39, action_dim=30, seed_steps=0, capacity=transitions, evict_seed=True,
                          device=torch.device("cpu"))  # fmt: skip
    draw = np.random.default_rng(0)
    for index in range(transitions // 200):
        shapes = ((200, 39), (200, 30), (200,), (200,), (200, 39))
        mirror.insert_online(
            Transitions(*(draw.standard_normal(shape, dtype=np.float32) for shape in shapes)), first_step=200 * index
        )
    return mirror


def best_seconds(act: Callable[[], object], rounds: int = 5, repeats: int = 20) -> float:
    """Best mean of several rounds, in seconds."""
    means = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(repeats):
            act()
        means.append((time.perf_counter() - began) / repeats)
    return min(means)


def products(batch: int, hidden: tuple[int, ...]) -> Callable[[], None]:
    """All matrix products of one update, into preallocated results."""
    made: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(rows: int, inner: int, columns: int) -> None:
        made.append((torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)))

    def network(sizes: tuple[int, ...], forwards: int, *, trained: bool) -> None:
        for index in range(len(sizes) - 1):
            for _ in range(forwards):
                add(batch, sizes[index], sizes[index + 1])
            if trained:
                add(sizes[index], batch, sizes[index + 1])
                if index:
                    add(batch, sizes[index + 1], sizes[index])

    network((39, *hidden, 30), 2, trained=True)  # policy: states, next states
    for _ in range(2):
        network((69, *hidden, 1), 2, trained=True)  # critic: data actions, mean actions
        network((69, *hidden, 1), 1, trained=False)  # target critic

    def run() -> None:
        for left, right, out in made:
            torch.mm(left, right, out=out)

    return run


def main() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    prefer_onednn()  # as the learner does
    mirror = filled_mirror(200_000)
    for name, (batch, hidden) in SIZES.items():
        config = LearnerConfig(policy_hidden_sizes=hidden, critic_hidden_sizes=hidden)
        state = make_state(config, SPEC, seed=0, device=torch.device("cpu"))

        def update() -> None:
            sampled = mirror.sample(batch, state.generator, offline_fraction=None)  # noqa: B023 - used at once
            gradient_step(state, sampled, config)  # noqa: B023 - used at once

        best_seconds(update, rounds=1)
        seconds, limit = best_seconds(update), best_seconds(products(batch, hidden))
        report(
            Measurement(
                name=f"AWAC update, {name}",
                value=round(1e3 * seconds, 2),
                unit="ms",
                against="its matrix products alone",
                ratio=round(seconds / limit, 2),
            )
        )


if __name__ == "__main__":
    main()
