"""What does one AWAC update cost, sampling included, beside its own matrix products and beside d3rlpy's AWAC?

The products are timed alone, in the same shapes and number: forward and both backward products of every layer that is
trained, forward alone of those that are not. All sides have the same number of threads and take turns.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the learner runs

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch

from benchmarks.arguments import take_no_arguments
from benchmarks.peer import PeerMissing, peer
from benchmarks.record import compared, report, skipped
from benchmarks.timing import Timer, alternate, timer
from learner.config import PRESETS, LearnerConfig
from learner.lanes import FEWEST_ROWS, Lanes
from learner.matrix_products import prefer_onednn
from learner.mirror import ReplayMirror, Transitions
from learner.update import gradient_step, make_state
from replay_service.experience import ExperienceSpec

SPEC = ExperienceSpec("relocate", 39, 30, 200)
CPU = torch.device("cpu")
TARGETED = "batch 1024, 4x256"


def _of_size(batch: int, *hidden: int) -> LearnerConfig:
    return LearnerConfig(batch_size=batch, policy_hidden_sizes=hidden, critic_hidden_sizes=hidden)


CASES = {
    "batch 256, 2x256": _of_size(256, 256, 256),
    TARGETED: _of_size(1024, 256, 256, 256, 256),
    "preset strong": LearnerConfig(**PRESETS["strong"]),
}
PEERED = ("batch 256, 2x256", TARGETED)
"""What d3rlpy's AWAC does too; it has no ensemble, no layer normalisation of critics and no averages."""
LOWEST_SHARE = 0.85
LOWEST_SPEEDUP = 1.8
_ROUNDS = 8
_ROUND_S = 0.3


def filled_mirror(transitions: int, device: torch.device = CPU) -> ReplayMirror:
    """Random transitions, in trajectories of 200."""
    mirror = ReplayMirror(observation_dim=39, action_dim=30, seed_steps=0, capacity=transitions, evict_seed=True,
                          device=device)  # fmt: skip
    draw = np.random.default_rng(0)
    for index in range(transitions // 200):
        shapes = ((200, 39), (200, 30), (200,), (200,), (200, 39))
        mirror.insert_online(
            Transitions(*(draw.standard_normal(shape, dtype=np.float32) for shape in shapes)), first_step=200 * index
        )
    return mirror


def products(config: LearnerConfig) -> tuple[Callable[[], None], float]:
    """All matrix products of one update, into preallocated results; and their floating-point operations."""
    batch = config.batch_size
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

    network((39, *config.policy_hidden_sizes, 30), 2, trained=True)  # states, next states
    for _ in range(config.num_critics):
        network((69, *config.critic_hidden_sizes, 1), 2, trained=True)  # data actions, mean actions
    for _ in range(config.num_target_critics):
        network((69, *config.critic_hidden_sizes, 1), 1, trained=False)

    def run() -> None:
        for left, right, out in made:
            torch.mm(left, right, out=out)

    return run, sum(2.0 * left.shape[0] * left.shape[1] * right.shape[1] for left, right, _ in made)


def make_update(mirror: ReplayMirror, config: LearnerConfig, lanes: int) -> Callable[[], None]:
    """Sampling and one gradient step, as the learner does them but for the share of offline data."""
    state = make_state(config, SPEC, seed=0, device=CPU)
    state.lanes = Lanes(lanes)

    def update() -> None:
        gradient_step(state, mirror.sample(config.batch_size, state.generator, offline_fraction=None), config)

    return update


def on_threads(count: int, take: Timer) -> Timer:
    """The same with so many threads for one operation."""

    def on_them(repeats: int) -> float:
        torch.set_num_threads(count)
        return take(repeats)

    return on_them


def measure(mirror: ReplayMirror, name: str, threads: int) -> None:
    """One case, with one number of threads on every side."""
    config = CASES[name]
    lanes = max(1, min(threads, config.batch_size // FEWEST_ROWS))
    alone, operations = products(config)
    with ExitStack() as stack:
        sides: dict[str, Timer] = {
            "update": on_threads(max(1, threads // lanes), timer(make_update(mirror, config, lanes))),
            "products": on_threads(threads, timer(alone)),
        }
        full_name = f"AWAC update, {name}, {threads} thread{'s' * (threads > 1)}"
        if name in PEERED and threads == (os.cpu_count() or 1):  # d3rlpy uses all cores
            sizes = (config.batch_size, *config.policy_hidden_sizes)
            try:
                other = stack.enter_context(peer("d3rlpy_awac", *map(str, sizes)))
                sides[f"d3rlpy {other.version}"] = other.take
            except PeerMissing as error:
                report(skipped(f"{full_name}, against d3rlpy", str(error)))
        once = sides["update"](3) / 3
        found = alternate(sides, rounds=_ROUNDS, repeats=max(3, round(_ROUND_S / once)))
    update, limit = found.pop("update"), found.pop("products")
    targeted = name == TARGETED
    report(compared(
        full_name, 1e3 * update.best, "ms", against="its matrix products alone", other=1e3 * limit.best,
        less_is_better=True, target=LOWEST_SHARE if targeted else None,
        note=f"{operations / 1e9:.1f} GFLOP at {operations / limit.best / 1e9:.0f} GFLOP/s; median of rounds "
        f"{1e3 * update.median:.1f} and {1e3 * limit.median:.1f} ms",
    ))  # fmt: skip
    for peer_name, timing in found.items():
        report(compared(
            f"{full_name}, against d3rlpy", 1e3 * update.best, "ms", against=f"{peer_name}, sample and update",
            other=1e3 * timing.best, less_is_better=True, target=LOWEST_SPEEDUP if targeted else None,
        ))  # fmt: skip


def main() -> None:
    take_no_arguments(__doc__)
    prefer_onednn()  # as the learner does
    mirror = filled_mirror(200_000)
    for name in CASES:
        for threads in sorted({1, os.cpu_count() or 1}):
            measure(mirror, name, threads)


if __name__ == "__main__":
    main()
