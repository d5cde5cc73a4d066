"""The policy as a message: `PolicySpec` and `PolicyWeights` fix the function from observation to action completely.

    h_0 = s;   h_{i+1} = relu(h_i W_i^T + b_i);   mean = tanh(h_n W_n^T + b_n);   a ~ Normal(mean, exp(log_std))

with `bounded_mean`; without it the tanh is left out (CORL's AWAC).

`learner/networks.py` (torch) and `actors/policy.py` (NumPy) are two readings of this text; a property test holds
them together. The action is not squashed after sampling and may leave [-1, 1] (rlkit's `GaussianPolicy`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay_service.experience import FloatArray


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """Shape of the policy network."""

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]
    bounded_mean: bool = True
    """Whether the mean action passes a tanh."""

    @property
    def layer_shapes(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of every linear layer, first to last."""
        sizes = (self.observation_dim, *self.hidden_sizes, self.action_dim)
        return tuple((sizes[i + 1], sizes[i]) for i in range(len(sizes) - 1))


@dataclass(frozen=True, slots=True, eq=False)
class PolicyWeights:
    """One published version of the policy."""

    spec: PolicySpec
    version: int
    """Counter of published weights, from 1."""
    grad_steps: int
    """Optimizer updates behind this version, offline ones included."""
    env_steps: int
    """Online environment steps that the updates behind this version are owed to; 0 for the offline policy."""
    published_unix_seconds: float
    weights: tuple[FloatArray, ...]
    """One (out, in) float32 array a layer."""
    biases: tuple[FloatArray, ...]
    """One (out,) float32 array a layer."""
    log_std: FloatArray
    """(A,) float32, natural logarithm of the standard deviation."""

    def misfit(self, observation_dim: int, action_dim: int) -> str | None:
        """Say how these weights, sound in themselves, do not fit an environment, or None when they do."""
        got = (self.spec.observation_dim, self.spec.action_dim)
        if got == (observation_dim, action_dim):
            return None
        return f"expected weights for observations and actions of sizes {(observation_dim, action_dim)}, got {got}"

    def problem(self) -> str | None:
        """Say what is wrong with these weights under their own spec, or None when nothing is."""
        shapes = self.spec.layer_shapes
        if len(self.weights) != len(shapes) or len(self.biases) != len(shapes):
            return f"expected {len(shapes)} layers, got {len(self.weights)} weights and {len(self.biases)} biases"
        named: list[tuple[str, FloatArray, tuple[int, ...]]]
        named = [(f"weights[{i}]", w, shapes[i]) for i, w in enumerate(self.weights)]
        named += [(f"biases[{i}]", b, shapes[i][:1]) for i, b in enumerate(self.biases)]
        named.append(("log_std", self.log_std, (self.spec.action_dim,)))
        for name, array, expected in named:
            if array.shape != expected or array.dtype != np.float32:
                return f"{name}: expected {expected} float32, got {array.shape} {array.dtype}"
            if not np.isfinite(array).all():
                return f"{name}: expected finite values, got NaN or infinity"
        return None
