"""Adam's step over lists that are made once.

`torch.optim.Adam.step` gathers parameters, gradients and moments anew each time, which takes as long as the arithmetic
for networks of this size. The optimizer stays what holds the moments: checkpoints read and write them there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FusedAdam:
    """The step of a torch Adam or AdamW with one group of parameters, each of which has a gradient.

    Args:
        optimizer: its moments are made if they are missing, and changed in place. Bit by bit what its own `step` does.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        (group,) = optimizer.param_groups
        self._parameters: list[Tensor] = list(group["params"])
        self._gradients: list[Tensor] = []
        for parameter in self._parameters:
            assert parameter.grad is not None, "gradients are made first"
            self._gradients.append(parameter.grad)
        slots = [moments(optimizer, parameter) for parameter in self._parameters]
        self._steps = [slot["step"] for slot in slots]
        self._means = [slot["exp_avg"] for slot in slots]
        self._squares = [slot["exp_avg_sq"] for slot in slots]
        self._kernel: Any = torch._fused_adamw_ if isinstance(optimizer, torch.optim.AdamW) else torch._fused_adam_
        self._group = group

    def step(self) -> None:
        """Move the parameters by their gradients."""
        group = self._group
        torch._foreach_add_(self._steps, 1)
        self._kernel(
            self._parameters, self._gradients, self._means, self._squares, [], self._steps,
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
            eps=group["eps"], amsgrad=False, maximize=False,
        )  # fmt: skip


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What an Adam keeps of a parameter: `step`, `exp_avg` and `exp_avg_sq`, zeros before its first step."""
    slots: dict[str, Tensor] = optimizer.state[parameter]
    if not slots:
        slots["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        slots["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        slots["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return slots
