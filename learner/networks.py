"""The torch reading of `replay_service.policy_weights`, and the critics.

Initialisation is rlkit's: hidden weights U(-1/sqrt(n), 1/sqrt(n)) with n the *output* width (its `fanin_init` reads
the first dimension of a Linear's weight), biases 0, last layer U(-w, w).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from replay_service.policy_weights import PolicySpec, PolicyWeights

_LAST_POLICY_LAYER_BOUND = 1e-3
_LAST_CRITIC_LAYER_BOUND = 3e-3
_STD_FLOOR = 1e-3


class ObservationScale(nn.Module):
    """(s - mean) / std with constants of the offline data; the identity until they are set."""

    mean: Tensor
    std: Tensor

    def __init__(self, observation_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("std", torch.ones(observation_dim))

    def fit(self, observations: Tensor) -> None:
        """Take mean and standard deviation of observations (B, O), B >= 2; the latter plus 1e-3, as CORL does."""
        self.mean.copy_(observations.mean(dim=0))
        self.std.copy_(observations.std(dim=0) + _STD_FLOOR)

    def forward(self, observations: Tensor) -> Tensor:
        """(B, O) -> (B, O)."""
        return (observations - self.mean) / self.std


@dataclass(frozen=True, slots=True)
class StdBounds:
    """How the log standard deviation is kept between two bounds."""

    min_log_std: float
    max_log_std: float
    bounding: Literal["sigmoid", "clamp"] = "sigmoid"
    """sigmoid: log sigma = min + sigmoid(logit) (max - min), rlkit's std_architecture "values". clamp: cut off."""
    initial_log_std: float | None = None
    """Value at the start; None: the middle of both bounds."""

    def initial_parameter(self) -> float:
        """The free parameter behind the initial value."""
        low, high = self.min_log_std, self.max_log_std
        initial = (low + high) / 2 if self.initial_log_std is None else self.initial_log_std
        if self.bounding == "clamp":
            return initial
        share = (initial - low) / (high - low)
        return math.log(share / (1.0 - share))

    def slope(self, parameter: Tensor) -> Tensor:
        """Derivative of `log_std` by the free parameter, elementwise."""
        if self.bounding == "clamp":
            return ((parameter >= self.min_log_std) & (parameter <= self.max_log_std)).to(parameter.dtype)
        share = torch.sigmoid(parameter)
        return share * (1.0 - share) * (self.max_log_std - self.min_log_std)

    def log_std(self, parameter: Tensor) -> Tensor:
        """The log standard deviation of a free parameter, elementwise."""
        if self.bounding == "clamp":
            return parameter.clamp(self.min_log_std, self.max_log_std)
        return self.min_log_std + torch.sigmoid(parameter) * (self.max_log_std - self.min_log_std)


class GaussianPolicy(nn.Module):
    """mean = tanh(MLP(s)), or MLP(s) when the spec leaves it unbounded; one log standard deviation an action."""

    def __init__(
        self, spec: PolicySpec, *, std_bounds: StdBounds, generator: torch.Generator, scale_observations: bool = False
    ) -> None:
        super().__init__()
        self.spec = spec
        self.scale = ObservationScale(spec.observation_dim) if scale_observations else None
        self._std_bounds = std_bounds
        self.layers = nn.ModuleList()
        for index, (out_features, in_features) in enumerate(spec.layer_shapes):
            layer = nn.Linear(in_features, out_features)
            last = index == len(spec.layer_shapes) - 1
            bound = _LAST_POLICY_LAYER_BOUND if last else 1.0 / math.sqrt(out_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)
        self.log_std_logit = nn.Parameter(torch.full((spec.action_dim,), std_bounds.initial_parameter()))

    def forward(self, observations: Tensor) -> Tensor:
        """Mean actions: (B, O) -> (B, A), in [-1, 1] when bounded."""
        hidden = observations if self.scale is None else self.scale(observations)
        for layer in self.layers[:-1]:
            hidden = torch.relu(layer(hidden))
        mean: Tensor = self.layers[-1](hidden)
        return torch.tanh(mean) if self.spec.bounded_mean else mean

    def write_log_std_gradient(self, gradient: Tensor) -> None:
        """Write the gradient of the free parameter, given dL/dlog_std, (A,)."""
        assert self.log_std_logit.grad is not None, "gradients are made first"
        torch.mul(gradient, self._std_bounds.slope(self.log_std_logit), out=self.log_std_logit.grad)

    def log_std(self) -> Tensor:
        """Log standard deviation of the actions, (A,)."""
        return self._std_bounds.log_std(self.log_std_logit)


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
        scale_observations: bool = False,
    ) -> None:
        super().__init__()
        self.num_critics = num_critics
        self.scale = ObservationScale(observation_dim) if scale_observations else None
        self.max_q = max_q
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

    def unlearned(self) -> int:
        """How many critics have had no gradient in any step so far: their output's bias is the 0 that it began with.

        One all of whose outputs begin above `max_q` has none, and stays so on data like those (docs/awac.md,
        `unlearned_critics`).
        """
        return int((self.biases[-1] == 0.0).sum().item())

    def forward(self, observations: Tensor, actions: Tensor, members: Tensor | None = None) -> Tensor:
        """Values of state-action pairs: (B, O), (B, A) -> (N, B), or (M, B) by the critics of `members`, (M,) int64."""
        if self.scale is not None:
            observations = self.scale(observations)
        inputs = torch.cat([observations, actions], dim=-1)

        def chosen(parameter: Tensor) -> Tensor:
            return parameter if members is None else parameter.index_select(0, members)

        hidden = inputs.expand(self.num_critics if members is None else len(members), *inputs.shape)
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(chosen(bias), hidden, chosen(weight))
            if index == last:
                break
            if len(self.scales):
                normal = nn.functional.layer_norm(hidden, hidden.shape[-1:])
                hidden = torch.addcmul(chosen(self.shifts[index]), normal, chosen(self.scales[index]))
            hidden = torch.relu(hidden)
        q = hidden.squeeze(-1)
        # The gradient is zero where the clamp holds, as in the authors' output activation Clamp(max=0).
        return q if self.max_q is None else q.clamp(max=self.max_q)


@dataclass(frozen=True, slots=True)
class PublicationStamp:
    """What is written beside published weights."""

    version: int
    grad_steps: int
    env_steps: int
    unix_seconds: float


def export_policy(policy: GaussianPolicy, stamp: PublicationStamp) -> PolicyWeights:
    """Copy a policy into a message; a scale of its observations goes into the first layer's weights."""

    def to_numpy(tensor: Tensor) -> np.ndarray:
        return tensor.detach().to("cpu", torch.float32).numpy().copy()

    linears = [layer for layer in policy.layers if isinstance(layer, nn.Linear)]
    weights = [to_numpy(layer.weight) for layer in linears]
    biases = [to_numpy(layer.bias) for layer in linears]
    if policy.scale is not None:
        weights[0] = weights[0] / to_numpy(policy.scale.std)
        biases[0] = biases[0] - weights[0] @ to_numpy(policy.scale.mean)
    return PolicyWeights(
        spec=policy.spec,
        version=stamp.version,
        grad_steps=stamp.grad_steps,
        env_steps=stamp.env_steps,
        published_unix_seconds=stamp.unix_seconds,
        weights=tuple(weights),
        biases=tuple(biases),
        log_std=to_numpy(policy.log_std()),
    )
