"""The NumPy policy against the message's own definition, number by number. Parity with torch: `tests/contracts`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.policy import NumpyPolicy
from replay_service import wire
from replay_service.experience import FloatArray
from replay_service.policy_weights import PolicySpec, PolicyWeights
from tests.policies import policy_weights


def make_weights(hidden_sizes: tuple[int, ...] = (5, 4)) -> PolicyWeights:
    return policy_weights(PolicySpec(3, 2, hidden_sizes), log_std=(-3.0, math.log(0.5)), version=6)


def slow_mean(weights: PolicyWeights, observation: FloatArray) -> list[float]:
    hidden = [float(x) for x in observation]
    last = len(weights.weights) - 1
    for index, (weight, bias) in enumerate(zip(weights.weights, weights.biases, strict=True)):
        sums = [
            float(b) + sum(float(w) * x for w, x in zip(row, hidden, strict=True))
            for row, b in zip(weight, bias, strict=True)
        ]
        hidden = [math.tanh(x) if index == last else max(x, 0.0) for x in sums]
    return hidden


@pytest.mark.parametrize("hidden_sizes", [(), (4,), (5, 4), (8, 8, 8, 8)])
def test_mean_is_the_tanh_of_a_relu_network(hidden_sizes: tuple[int, ...]) -> None:
    weights = make_weights(hidden_sizes)
    policy = NumpyPolicy(weights)
    observations = np.random.default_rng(1).standard_normal((7, 3), dtype=np.float32)
    together = policy.mean(observations)
    assert together.dtype == np.float32
    for observation, row in zip(observations, together, strict=True):
        np.testing.assert_allclose(row, slow_mean(weights, observation), rtol=1e-5, atol=3e-5)
        np.testing.assert_allclose(policy.mean(observation), row, rtol=1e-5, atol=3e-5)


def test_a_sample_is_the_mean_plus_scaled_noise_and_is_not_squashed() -> None:
    policy = NumpyPolicy(make_weights())
    observation = np.array([0.3, -0.2, 0.9], dtype=np.float32)
    mean = policy.mean(observation)
    np.testing.assert_array_equal(policy.act(observation, np.zeros(2, dtype=np.float32)), mean)
    action = policy.act(observation, np.array([2.0, -8.0], dtype=np.float32))
    assert action.dtype == np.float32
    np.testing.assert_allclose(action - mean, [2.0 * math.exp(-3.0), -8.0 * 0.5], rtol=1e-5)
    assert action[1] < -1.0


def test_remembers_which_version_acts() -> None:
    policy = NumpyPolicy(make_weights())
    assert (policy.version, policy.published_unix_seconds) == (6, 1_700_000_006.5)


def test_acts_from_a_decoded_message_and_keeps_none_of_its_bytes() -> None:
    weights = make_weights()
    policy = NumpyPolicy(wire.decode_policy_weights(wire.encode_policy_weights(weights)))
    observation = np.ones(3, dtype=np.float32)
    before = policy.mean(observation)
    np.testing.assert_array_equal(before, NumpyPolicy(weights).mean(observation))
    own = NumpyPolicy(weights)
    for array in (*weights.weights, *weights.biases, weights.log_std):
        array[:] = 0.0
    np.testing.assert_array_equal(own.mean(observation), before)
