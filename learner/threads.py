"""How many threads a gradient step is given on the CPU."""

from __future__ import annotations

import torch

from learner.config import LearnerConfig
from learner.lanes import FEWEST_ROWS, Lanes
from replay_service.process import available_cores

_ONE_THREAD_BATCH = 512


def threads_for(config: LearnerConfig) -> int:
    """Threads that pay: on two cores a second one saves two fifths of an update at batch 1,024, an eighth at 256; for
    the smaller batches the core is left to the actors.
    """
    if config.threads:
        return config.threads
    return 1 if max(config.batch_size, config.offline_batch_size) <= _ONE_THREAD_BATCH else available_cores()


def use_threads(config: LearnerConfig, device: torch.device) -> Lanes:
    """Set torch's threads for this process: lanes where a batch is large enough, what is left over within operations.

    Returns:
        The lanes that share a batch; one on any other device than the CPU.
    """
    threads = threads_for(config)
    largest = max(config.batch_size, config.offline_batch_size)
    lanes = 1 if device.type != "cpu" else max(1, min(threads, largest // FEWEST_ROWS))
    torch.set_num_threads(max(1, threads // lanes))
    return Lanes(lanes)
