"""TorchRL's storage in a Redis: extend it by one chunk of 200 steps: `torchrl_redis.py PORT WRITER`."""

from __future__ import annotations

import sys

from serving import serve, unavailable

try:
    import torch
    import torchrl
    from tensordict import TensorDict
    from torchrl.data import ReplayBuffer
    from torchrl.data.replay_buffers.storages import StoreStorage
except ImportError as error:
    unavailable(f"torchrl: {error}")

STEPS = 200


def main() -> None:
    port, writer = sys.argv[1:]
    torch.set_num_threads(1)
    storage = StoreStorage(max_size=20_000, host="127.0.0.1", port=int(port), prefix=f"writer{writer}")
    buffer = ReplayBuffer(storage=storage, batch_size=256)
    following = {"observation": torch.randn(STEPS, 39), "reward": torch.randn(STEPS, 1)}
    data = {"observation": torch.randn(STEPS, 39), "action": torch.randn(STEPS, 30), "next": following}
    chunk = TensorDict(data, [STEPS])
    serve(torchrl.__version__, lambda: buffer.extend(chunk))


if __name__ == "__main__":
    main()
