"""What do 32 actors cost on a machine that two would fill? Environment steps, memory, and whether the learner starves.

Both runs have the same settings, those of `strong` with a quarter of an update an environment step; only the number of
actors differs. They are measured once the limiter's band is full, when the learner sets the pace.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arguments import take_no_arguments
from benchmarks.online_run import online_run
from benchmarks.record import compared, limited, report

FEW, MANY = 2, 32
SECONDS = 30.0
LOWEST_SHARE = 0.90
MOST_MIB = 6 * 1024
MOST_WAITING_PERCENT = 5.0
_FULL = 0.97
_LONGEST_FILLING_S = 180.0


@dataclass(frozen=True, slots=True)
class Found:
    """What one run did."""

    env_steps_a_second: float
    updates_a_second: float
    memory_mib: float
    waiting_percent: float


def measure(actors: int) -> Found:
    """One run."""
    with (
        tempfile.TemporaryDirectory() as folder,
        online_run(
            Path(folder), env="relocate", preset="strong", actors=actors, device="cpu", utd_ratio=0.25,
            num_offline_steps=200, num_env_steps=10**9, learner__evaluate_every_env_steps=0, evaluator__episodes=1,
            learner__report_every_s=1,
        ) as run,
    ):  # fmt: skip
        # Before that the actors are faster than they can be for long, and take the cores that the learner has later.
        deadline = time.monotonic() + _LONGEST_FILLING_S
        while (state := run.state()).env_steps_ahead < _FULL * state.tolerance_env_steps:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        first, began = run.state(), time.time()
        time.sleep(SECONDS)
        last, ended = run.state(), time.time()
        memory = run.memory_mib()
        waiting = [r.metrics["waiting_ratio"] for r in run.learner_reports() if began + 1.0 <= r.unix_seconds <= ended]
    seconds = ended - began
    return Found(
        # Admitted steps: with the band full of leases, stored ones still grow by what is on its way.
        (last.env_steps + last.leased_steps - first.env_steps - first.leased_steps) / seconds,
        (last.online_grad_steps - first.online_grad_steps) / seconds,
        memory,
        100.0 * sum(waiting) / len(waiting),
    )


def main() -> None:
    take_no_arguments(__doc__)
    few, many = measure(FEW), measure(MANY)
    report(compared(
        f"launcher up --actors {MANY}", many.env_steps_a_second, "env steps/s", against=f"--actors {FEW}",
        other=few.env_steps_a_second, target=LOWEST_SHARE,
    ))  # fmt: skip
    report(compared(
        f"launcher up --actors {MANY}: updates", many.updates_a_second, "a second", against=f"--actors {FEW}",
        other=few.updates_a_second, target=LOWEST_SHARE,
    ))  # fmt: skip
    report(limited(
        f"launcher up --actors {MANY}: memory in all", many.memory_mib, "MiB", at_most=MOST_MIB,
        note=f"proportional set size of every process, Ray's included; with {FEW} actors {few.memory_mib:.0f} MiB",
    ))  # fmt: skip
    report(limited(
        f"launcher up --actors {MANY}: learner waits for experience", many.waiting_percent, "% of the time",
        at_most=MOST_WAITING_PERCENT, note=f"with {FEW} actors {few.waiting_percent:.2g} %",
    ))  # fmt: skip


if __name__ == "__main__":
    main()
