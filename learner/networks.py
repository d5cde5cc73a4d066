"""The torch reading of `replay_service.policy_weights`, and the critics.

Initialisation is rlkit's: hidden weights U(-1/sqrt(n), 1/sqrt(n)) with n the *output* width (its `fanin_init` reads
the first dimension of a Linear's weight), biases 0, last layer U(-w, w).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from replay_service.policy_weights import PolicySpec, PolicyWeights

_LAST_POLICY_LAYER_BOUND = 1e-3
_LAST_CRITIC_LAYER_BOUND = 3e-3


class GaussianPolicy(nn.Module):
    """mean = tanh(MLP(s)); one free log standard deviation an action dimension, bounded by a sigmoid.

    log sigma = min + sigmoid(logit) (max - min), logit 0 at the start (rlkit's std_architecture "values").
    """

    def __init__(self, spec: PolicySpec, *, min_log_std: float, max_log_std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.spec = spec
        self._min_log_std = min_log_std
        self._max_log_std = max_log_std
        self.layers = nn.ModuleList()
        for index, (out_features, in_features) in enumerate(spec.layer_shapes):
            layer = nn.Linear(in_features, out_features)
            last = index == len(spec.layer_shapes) - 1
            bound = _LAST_POLICY_LAYER_BOUND if last else 1.0 / math.sqrt(out_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)
        self.log_std_logit = nn.Parameter(torch.zeros(spec.action_dim))

    def forward(self, observations: Tensor) -> Tensor:
        """Mean actions: (B, O) -> (B, A) in [-1, 1]."""
        hidden = observations
        for layer in self.layers[:-1]:
            hidden = torch.relu(layer(hidden))
        return torch.tanh(self.layers[-1](hidden))

    def log_std(self) -> Tensor:
        """Log standard deviation of the actions, (A,)."""
        span = self._max_log_std - self._min_log_std
        return self._min_log_std + torch.sigmoid(self.log_std_logit) * span


class CriticEnsemble(nn.Module):
    """N critics of the same shape, evaluated together as batched matrix products."""

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        hidden_sizes: Sequence[int],
        num_critics: int,
        layer_norm: bool,
        max_q: float | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.num_critics = num_critics
        self._max_q = max_q
        sizes = (observation_dim + action_dim, *hidden_sizes, 1)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.scales = nn.ParameterList()
        self.shifts = nn.ParameterList()
        for index in range(len(sizes) - 1):
            last = index == len(sizes) - 2
            bound = _LAST_CRITIC_LAYER_BOUND if last else 1.0 / math.sqrt(sizes[index + 1])
            weight = torch.empty(num_critics, sizes[index], sizes[index + 1]).uniform_(
                -bound, bound, generator=generator
            )
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(num_critics, 1, sizes[index + 1])))
            if layer_norm and not last:
                self.scales.append(nn.Parameter(torch.ones(num_critics, 1, sizes[index + 1])))
                self.shifts.append(nn.Parameter(torch.zeros(num_critics, 1, sizes[index + 1])))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Values of state-action pairs: (B, O), (B, A) -> (N, B)."""
        inputs = torch.cat([observations, actions], dim=-1)
        hidden = inputs.expand(self.num_critics, *inputs.shape)
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if index == last:
                break
            if len(self.scales):
                hidden = nn.functional.layer_norm(hidden, hidden.shape[-1:]) * self.scales[index] + self.shifts[index]
            hidden = torch.relu(hidden)
        q = hidden.squeeze(-1)
        # The gradient is zero where the clamp holds, as in the authors' output activation Clamp(max=0).
        return q if self._max_q is None else q.clamp(max=self._max_q)


@dataclass(frozen=True, slots=True)
class PublicationStamp:
    """What is written beside published weights."""

    version: int
    grad_steps: int
    env_steps: int
    unix_seconds: float


def export_policy(policy: GaussianPolicy, stamp: PublicationStamp) -> PolicyWeights:
    """Copy a policy into a message."""

    def to_numpy(tensor: Tensor) -> np.ndarray:
        return tensor.detach().to("cpu", torch.float32).numpy().copy()

    linears = [layer for layer in policy.layers if isinstance(layer, nn.Linear)]
    return PolicyWeights(
        spec=policy.spec,
        version=stamp.version,
        grad_steps=stamp.grad_steps,
        env_steps=stamp.env_steps,
        published_unix_seconds=stamp.unix_seconds,
        weights=tuple(to_numpy(layer.weight) for layer in linears),
        biases=tuple(to_numpy(layer.bias) for layer in linears),
        log_std=to_numpy(policy.log_std()),
    )
