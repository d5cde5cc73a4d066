"""The NumPy reading of `replay_service.policy_weights`: observation -> action, one forward pass, no torch."""

from __future__ import annotations

import numpy as np

from replay_service.experience import FloatArray
from replay_service.policy_weights import PolicyWeights

_ZERO = np.float32(0.0)


class NumpyPolicy:
    """A Gaussian policy with one standard deviation for all states."""

    def __init__(self, weights: PolicyWeights) -> None:
        self.version = weights.version
        self.env_steps = weights.env_steps
        self.published_unix_seconds = weights.published_unix_seconds
        # Contiguous copies: the arrays of a decoded message are views of its bytes, aligned by chance only.
        self._weights = [np.ascontiguousarray(w).copy() for w in weights.weights]
        self._biases = [b.copy() for b in weights.biases]
        self._std: FloatArray = np.exp(weights.log_std)
        self._bounded_mean = weights.spec.bounded_mean
        self._outputs = [np.empty_like(b) for b in self._biases]

    def mean(self, observation: FloatArray) -> FloatArray:
        """The mean action, used for evaluation: (O,) or (B, O) float32 -> (A,) or (B, A) float32."""
        hidden = observation
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            hidden = np.maximum(hidden @ weight.T + bias, np.float32(0.0))
        mean: FloatArray = hidden @ self._weights[-1].T + self._biases[-1]
        return np.tanh(mean) if self._bounded_mean else mean

    def _mean_of_one(self, observation: FloatArray) -> FloatArray:
        """The same for one observation, into arrays that are made once; valid until the next call."""
        hidden, last = observation, len(self._weights) - 1
        for index, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            output = self._outputs[index]
            np.dot(weight, hidden, out=output)
            np.add(output, bias, out=output)
            if index < last:
                np.maximum(output, _ZERO, out=output)
            elif self._bounded_mean:
                np.tanh(output, out=output)
            hidden = output
        return hidden

    def act(self, observation: FloatArray, noise: FloatArray) -> FloatArray:
        """A sample of the policy, used for exploration: mean + std * noise; it may leave [-1, 1].

        Args:
            observation: (O,) float32.
            noise: (A,) float32, standard normal.

        Returns:
            (A,) float32.
        """
        exploration: FloatArray = self._std * noise
        return np.add(self._mean_of_one(observation), exploration, out=exploration)
