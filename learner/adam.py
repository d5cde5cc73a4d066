"""Adam and AdamW: moments of our own, torch's fused kernels, no `torch.optim`.

The first optimizer of `torch.optim` that is made loads torch's compiler, which takes a learner more than a second and
serves it nothing; and its `step` gathers parameters, gradients and moments anew each time, which takes as long as the
arithmetic for networks of this size. The arithmetic here is torch's, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class Adam:
    """Moves parameters by their gradients (Kingma and Ba 2015; decoupled decay: Loshchilov and Hutter 2019).

    Args:
        parameters: what is moved; each has a `grad` once `step` is called, which stays the same tensor from then on.
        learning_rate: step size.
        weight_decay: factor of the parameters.
        decoupled: shrink the parameters themselves (AdamW) instead of adding an L2 penalty to the gradient.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        self.parameters = tuple(parameters)
        self._slots: dict[Tensor, dict[str, Tensor]] = {}
        self._lists: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]] | None = None
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        # Not in torch's own stubs; the functions behind torch.optim's `fused=True`.
        self._kernel: Any = torch._fused_adamw_ if decoupled else torch._fused_adam_

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept of a parameter: `step`, `exp_avg` and `exp_avg_sq`, zeros before the first step."""
        slots = self._slots.get(parameter)
        if slots is None:
            slots = self._slots[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
        return slots

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradients."""
        if self._lists is None:
            self._lists = self._gather()
        gradients, means, squares, steps = self._lists
        torch._foreach_add_(steps, 1)
        self._kernel(
            list(self.parameters), gradients, means, squares, [], steps,
            lr=self._learning_rate, beta1=_BETAS[0], beta2=_BETAS[1], weight_decay=self._weight_decay, eps=_EPSILON,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    def _gather(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        gradients = []
        for parameter in self.parameters:
            assert parameter.grad is not None, "gradients are made first"
            gradients.append(parameter.grad)
        slots = [self.moments(parameter) for parameter in self.parameters]
        return (
            gradients,
            [slot["exp_avg"] for slot in slots],
            [slot["exp_avg_sq"] for slot in slots],
            [slot["step"] for slot in slots],
        )
