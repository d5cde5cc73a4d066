"""Capture a step as a CUDA graph: one launch in place of some two hundred kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def capture(step: Callable[[], Tensor], generator: torch.Generator) -> Callable[[], Tensor]:
    """Record what a step launches; nothing is computed meanwhile.

    Args:
        step: reads and writes tensors that stay where they are, never waits for the device, and has run before.
        generator: the only one that it draws from, on the same device.

    Returns:
        A replay of the step with the generator's next numbers. Its result is the same tensor every time.

    Raises:
        RuntimeError: the step does what a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
