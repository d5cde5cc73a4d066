"""Does anything but the learner hold a run up? `launcher up` at one update an environment step, after pretraining.

The learner is the slowest part then; the rest is to keep it fed. Its time is what it reports itself: how long it waited
for experience. Beside the updates a second of the online phase stands the rate of pretraining, when actors sleep.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

from benchmarks.arguments import take_no_arguments
from benchmarks.online_run import online_run
from benchmarks.record import compared, limited, report

SECONDS = 45.0
OFFLINE_STEPS = 500
LOWEST_BUSY_PERCENT = 95.0
_SETTLE_S = 3.0


def main() -> None:
    take_no_arguments(__doc__)
    with (
        tempfile.TemporaryDirectory() as folder,
        online_run(
            Path(folder), env="relocate", preset="published", actors=2, device="cpu", utd_ratio=1,
            num_offline_steps=OFFLINE_STEPS, learner__batch_size=1024, learner__offline_batch_size=1024,
            num_env_steps=10**9, learner__evaluate_every_env_steps=0, evaluator__episodes=1, learner__report_every_s=1,
        ) as run,
    ):  # fmt: skip
        time.sleep(_SETTLE_S)  # the evaluation of the offline policy
        first, began = run.state(), time.time()
        outside = 0
        ahead: list[float] = []
        while time.time() - began < SECONDS:
            time.sleep(0.25)
            state = run.state()
            ahead.append(state.env_steps_ahead)
            outside += not -1.0 <= ahead[-1] <= state.tolerance_env_steps
        last, ended = run.state(), time.time()
        reports = run.learner_reports()
    online = [r for r in reports if began + 1.0 <= r.unix_seconds <= ended]
    before = [r for r in reports if r.env_steps == 0 and r.metrics.get("grad_steps_per_second", 0.0) > 0.0]
    # A report covers the time since the one before it.
    spans = [later.unix_seconds - earlier.unix_seconds for earlier, later in itertools.pairwise(online)]
    waited = sum(span * r.metrics["waiting_ratio"] for span, r in zip(spans, online[1:], strict=True))
    report(limited(
        "launcher up, one update an env step: learner busy", 100.0 * (1.0 - waited / sum(spans)), "% of the time",
        at_least=LOWEST_BUSY_PERCENT, digits=4, note=f"2 actors, batch 1024, {ended - began:.0f} s",
    ))  # fmt: skip
    updates = (last.online_grad_steps - first.online_grad_steps) / (ended - began)
    alone = sorted(r.metrics["grad_steps_per_second"] for r in before)
    report(compared(
        "launcher up, one update an env step: updates", updates, "a second", against="the learner alone, pretraining",
        other=alone[len(alone) // 2],
    ))  # fmt: skip
    report(limited(
        "launcher up: readings outside of the limiter's band", outside, f"of {len(ahead)}", at_most=0,
        note=f"actors were {min(ahead):.0f} to {max(ahead):.0f} env steps ahead, the band is 0 to "
        f"{last.tolerance_env_steps}; {(last.env_steps - first.env_steps) / (ended - began):.0f} env steps/s",
    ))  # fmt: skip


if __name__ == "__main__":
    main()
