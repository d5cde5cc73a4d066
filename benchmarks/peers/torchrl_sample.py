"""TorchRL's replay buffer in memory: draw one batch: `torchrl_sample.py TRANSITIONS BATCH`."""

from __future__ import annotations

import sys

from serving import serve, unavailable

try:
    import torch
    import torchrl
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
except ImportError as error:
    unavailable(f"torchrl: {error}")


def main() -> None:
    transitions, batch_size = (int(word) for word in sys.argv[1:])
    torch.set_num_threads(1)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(transitions), batch_size=batch_size)
    following = {
        "observation": torch.randn(transitions, 39),
        "reward": torch.randn(transitions, 1),
        "done": torch.zeros(transitions, 1, dtype=torch.bool),
    }
    data = {"observation": torch.randn(transitions, 39), "action": torch.randn(transitions, 30), "next": following}
    buffer.extend(TensorDict(data, [transitions]))
    serve(torchrl.__version__, buffer.sample)


if __name__ == "__main__":
    main()
