"""How long does it take to draw a batch from a mirror of a million transitions, beside TorchRL's buffer in memory?"""

from __future__ import annotations

import torch

from benchmarks.arguments import take_no_arguments
from benchmarks.learner_update import filled_mirror
from benchmarks.peer import PeerMissing, peer
from benchmarks.record import compared, report, skipped
from benchmarks.timing import alternate, timer

TRANSITIONS = 1_000_000
BATCHES = (256, 1024)
LOWEST_SPEEDUP = 4.0


def main() -> None:
    take_no_arguments(__doc__)
    torch.set_num_threads(1)
    mirror = filled_mirror(TRANSITIONS)
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        name = f"sample {batch} of {TRANSITIONS:,} transitions"

        def sample(batch: int = batch) -> None:
            mirror.sample(batch, generator, offline_fraction=None)

        try:
            with peer("torchrl_sample", str(TRANSITIONS), str(batch)) as other:
                found = alternate({"mirror": timer(sample), "peer": other.take}, rounds=8, repeats=200)
                report(compared(
                    name, 1e6 * found["mirror"].best, "us", against=f"TorchRL {other.version} in memory",
                    other=1e6 * found["peer"].best, less_is_better=True, target=LOWEST_SPEEDUP,
                ))  # fmt: skip
        except PeerMissing as error:
            report(skipped(name, str(error)))


if __name__ == "__main__":
    main()
