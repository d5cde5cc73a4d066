"""AWAC's losses against loops that read like the equations, literal tables, and claims that hold for any numbers."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from learner import awac

Array = npt.NDArray[np.float32]
Weighting = Literal["batch_softmax", "exponential", "uniform"]

QUICK = settings(max_examples=60, deadline=None)
SIZES = st.integers(1, 6)


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, allow_subnormal=False)


def arrays_of(*shape: int, low: float = -3.0, high: float = 3.0) -> st.SearchStrategy[Array]:
    return arrays(np.float32, shape, elements=floats(low, high))


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float32))


def leaf(values: Any) -> Tensor:
    return tensor(values).clone().requires_grad_(True)


def gradient(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs)


# Slow readings of the docstrings' equations: float64, one number at a time.


def slow_log_prob(mean: Array, log_std: Array, actions: Array) -> list[float]:
    result = []
    for b in range(mean.shape[0]):
        total = 0.0
        for j in range(mean.shape[1]):
            sigma = math.exp(float(log_std[j]))
            z = (float(actions[b, j]) - float(mean[b, j])) / sigma
            total += -0.5 * (z * z + 2.0 * math.log(sigma) + math.log(2.0 * math.pi))
        result.append(total)
    return result


def slow_td_target(
    rewards: Array, discounts: Array, next_q: Array, max_target: float | None, min_target: float | None
) -> list[float]:
    result = []
    for b in range(len(rewards)):
        y = float(rewards[b]) + float(discounts[b]) * min(float(next_q[i, b]) for i in range(len(next_q)))
        if min_target is not None and y < min_target:
            y = min_target
        if max_target is not None and y > max_target:
            y = max_target
        result.append(y)
    return result


def slow_critic_loss(q: Array, target: Array) -> float:
    total = 0.0
    for i in range(q.shape[0]):
        squares = [(float(q[i, b]) - float(target[b])) ** 2 for b in range(q.shape[1])]
        total += sum(squares) / len(squares)
    return total


def slow_weights(
    advantages: Array,
    *,
    temperature: float,
    weighting: Weighting,
    advantage_clip: float | None,
    max_weight: float | None,
    normalise: bool,
) -> list[float]:
    clipped = [float(a) if advantage_clip is None else min(float(a), advantage_clip) for a in advantages]
    exponents = [a / temperature for a in clipped]
    size = len(exponents)
    if weighting == "uniform":
        return [1.0] * size
    if weighting == "batch_softmax":
        largest = max(exponents)  # keeps exp() finite and cancels
        total = sum(math.exp(e - largest) for e in exponents)
        return [size * math.exp(e - largest) / total for e in exponents]
    weights = [math.exp(e) if max_weight is None else min(math.exp(e), max_weight) for e in exponents]
    mean = sum(weights) / size
    return [w / mean for w in weights] if normalise else weights


def slow_policy_loss(log_prob: Array, weights: Array) -> float:
    return -sum(float(w) * float(p) for w, p in zip(weights, log_prob, strict=True)) / len(log_prob)


class TestGaussianLogProb:
    @QUICK
    @given(st.data(), SIZES, st.integers(1, 4))
    def test_is_the_sum_of_one_dimensional_log_densities(
        self, data: st.DataObject, batch: int, action_dim: int
    ) -> None:
        mean = data.draw(arrays_of(batch, action_dim, low=-1, high=1))
        log_std = data.draw(arrays_of(action_dim, low=-4, high=1))
        actions = data.draw(arrays_of(batch, action_dim, low=-2, high=2))
        found = awac.gaussian_log_prob(tensor(mean), tensor(log_std), tensor(actions))
        np.testing.assert_allclose(found, slow_log_prob(mean, log_std, actions), rtol=2e-5, atol=2e-4)

    @pytest.mark.parametrize(
        ("mean", "log_std", "action", "expected"),
        [
            ([0.0], [0.0], [0.0], -0.9189385),  # the top of the standard normal
            ([0.0], [0.0], [1.0], -1.4189385),  # one sigma away costs one half
            ([0.25], [-3.0], [0.25], 2.0810615),  # sigma = e^-3 raises the top by 3
            ([0.0, 0.5], [-3.0, 0.0], [0.0, 2.5], -0.8378771),  # dimensions add up: 2.0810615 - 0.9189385 - 2
        ],
    )
    def test_literal_values(
        self, mean: list[float], log_std: list[float], action: list[float], expected: float
    ) -> None:
        found = awac.gaussian_log_prob(tensor([mean]), tensor(log_std), tensor([action]))
        assert found.tolist() == pytest.approx([expected], rel=1e-6)

    def test_gradient_pulls_the_mean_to_the_action_and_widens_only_where_the_action_is_far(self) -> None:
        mean, log_std = leaf([[0.0, 0.0, 0.0]]), leaf([0.0, 0.0, 0.0])
        actions = tensor([[2.0, -2.0, 0.5]])
        by_mean, by_log_std = gradient(awac.gaussian_log_prob(mean, log_std, actions).sum(), mean, log_std)
        assert by_mean.tolist() == [[2.0, -2.0, 0.5]]  # (a - mu) / sigma^2
        assert by_log_std.tolist() == [3.0, 3.0, -0.75]  # z^2 - 1


class TestTdTarget:
    @QUICK
    @given(st.data(), SIZES, st.integers(1, 4), st.none() | floats(-4, 1), st.none() | floats(-9, -4))
    def test_follows_the_equation(
        self, data: st.DataObject, batch: int, critics: int, max_target: float | None, min_target: float | None
    ) -> None:
        rewards = data.draw(arrays_of(batch))
        discounts = data.draw(arrays_of(batch, low=0, high=1))
        next_q = data.draw(arrays_of(critics, batch, low=-9, high=3))
        found = awac.td_target(
            tensor(rewards), tensor(discounts), tensor(next_q), max_target=max_target, min_target=min_target
        )
        expected = slow_td_target(rewards, discounts, next_q, max_target, min_target)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    def test_literal_table(self) -> None:
        rewards, discounts = tensor([-1.0, 0.0, -1.0, 2.0]), tensor([0.99, 0.99, 0.0, 0.5])
        next_q = tensor([[-10.0, -4.0, -50.0, 1.0], [-20.0, -2.0, -70.0, 3.0]])
        table = {
            (None, None): [-20.8, -3.96, -1.0, 2.5],
            (0.0, None): [-20.8, -3.96, -1.0, 0.0],
            (None, -5.0): [-5.0, -3.96, -1.0, 2.5],
            (-2.0, -5.0): [-5.0, -3.96, -2.0, -2.0],
        }
        for (max_target, min_target), expected in table.items():
            found = awac.td_target(rewards, discounts, next_q, max_target=max_target, min_target=min_target)
            assert found.tolist() == pytest.approx(expected), (max_target, min_target)

    def test_carries_no_gradient(self) -> None:
        target = awac.td_target(tensor([0.0]), tensor([1.0]), leaf([[1.0], [2.0]]))
        assert not target.requires_grad


class TestCriticLoss:
    @QUICK
    @given(st.data(), SIZES, st.integers(1, 4))
    def test_sums_the_mean_squared_errors_of_the_critics(self, data: st.DataObject, batch: int, critics: int) -> None:
        q, target = data.draw(arrays_of(critics, batch)), data.draw(arrays_of(batch))
        found = awac.critic_loss(tensor(q), tensor(target))
        assert float(found) == pytest.approx(slow_critic_loss(q, target), rel=1e-5, abs=1e-6)

    def test_gives_each_critic_the_gradient_of_its_own_mean_squared_error(self) -> None:
        q, target = leaf([[1.0, 2.0], [-3.0, 0.0]]), tensor([0.0, 4.0])
        (found,) = gradient(awac.critic_loss(q, target), q)
        assert found.tolist() == [[1.0, -2.0], [-3.0, -4.0]]  # 2 (Q - y) / B: towards the target, number by number


class TestAdvantageWeights:
    @QUICK
    @given(
        st.data(),
        SIZES,
        st.sampled_from(["batch_softmax", "exponential", "uniform"]),
        floats(0.25, 4),
        st.none() | floats(-1, 2),
        st.none() | floats(0.125, 20),
        st.booleans(),
    )
    def test_follow_the_equations(
        self,
        data: st.DataObject,
        batch: int,
        weighting: Weighting,
        temperature: float,
        advantage_clip: float | None,
        max_weight: float | None,
        normalise: bool,
    ) -> None:
        advantages = data.draw(arrays_of(batch, low=-5, high=5))
        found = awac.advantage_weights(
            tensor(advantages),
            temperature=temperature,
            weighting=weighting,
            advantage_clip=advantage_clip,
            max_weight=max_weight,
            normalise=normalise,
        )
        expected = slow_weights(
            advantages,
            temperature=temperature,
            weighting=weighting,
            advantage_clip=advantage_clip,
            max_weight=max_weight,
            normalise=normalise,
        )
        np.testing.assert_allclose(found, expected, rtol=5e-5, atol=1e-7)

    def test_literal_softmax(self) -> None:
        advantages = tensor([0.0, 0.5 * math.log(2), 0.5 * math.log(4)])  # exponents 0, ln 2, ln 4 at lambda = 1/2
        found = awac.advantage_weights(advantages, temperature=0.5, weighting="batch_softmax")
        assert found.tolist() == pytest.approx([3 / 7, 6 / 7, 12 / 7])

    @pytest.mark.parametrize(
        ("max_weight", "normalise", "expected"),
        [
            (None, False, [0.5, 2.0, 8.0]),
            (4.0, False, [0.5, 2.0, 4.0]),
            (None, True, [1 / 7, 4 / 7, 16 / 7]),
            (4.0, True, [3 / 13, 12 / 13, 24 / 13]),  # the bound comes before the mean
        ],
    )
    def test_literal_exponentials(self, max_weight: float | None, normalise: bool, expected: list[float]) -> None:
        advantages = tensor([-2 * math.log(2), 2 * math.log(2), 2 * math.log(8)])
        found = awac.advantage_weights(
            advantages, temperature=2.0, weighting="exponential", max_weight=max_weight, normalise=normalise
        )
        assert found.tolist() == pytest.approx(expected)

    @QUICK
    @given(st.data(), st.integers(1, 2048), floats(0.0625, 8), st.none() | floats(0, 2))
    def test_softmax_weights_have_mean_one(
        self, data: st.DataObject, batch: int, temperature: float, advantage_clip: float | None
    ) -> None:
        seed = data.draw(st.integers(0, 2**31))
        advantages = tensor(np.random.default_rng(seed).normal(0.0, 30.0, batch))
        weights = awac.advantage_weights(
            advantages, temperature=temperature, weighting="batch_softmax", advantage_clip=advantage_clip
        )
        assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
        assert float(weights.min()) >= 0.0

    @pytest.mark.parametrize("weighting", ["batch_softmax", "exponential"])
    def test_the_clip_acts_on_the_advantage_before_the_division_by_the_temperature(self, weighting: Weighting) -> None:
        advantages = tensor([0.0, 0.5, 2.0, 100.0])
        weights = awac.advantage_weights(advantages, temperature=0.5, weighting=weighting, advantage_clip=0.5)
        ratios = weights / weights[0]
        # Clipping A / lambda at 0.5 would give e^0.5, and no clip at all e^200.
        assert ratios.tolist() == pytest.approx([1.0, math.e, math.e, math.e])

    @QUICK
    @given(st.data(), SIZES, st.sampled_from(["batch_softmax", "exponential"]), floats(0, 2))
    @example(None, 0, "exponential", 0.5)
    def test_nothing_below_the_clip_is_changed_however_negative(
        self, data: st.DataObject | None, batch: int, weighting: Weighting, clip: float
    ) -> None:
        values = [-40.0, -5.0, 0.0, clip] if data is None else data.draw(arrays_of(batch, low=-40, high=0)) + clip
        free = awac.advantage_weights(tensor(values), temperature=1.0, weighting=weighting)
        clipped = awac.advantage_weights(tensor(values), temperature=1.0, weighting=weighting, advantage_clip=clip)
        assert torch.equal(free, clipped)
        if weighting == "exponential":
            np.testing.assert_allclose(clipped, np.exp(np.asarray(values, dtype=np.float64)), rtol=1e-5)

    def test_a_huge_advantage_stays_finite_under_max_weight(self) -> None:
        weights = awac.advantage_weights(
            tensor([1e6, 0.0]), temperature=0.01, weighting="exponential", max_weight=100.0
        )
        assert weights.tolist() == pytest.approx([100.0, 1.0])

    @pytest.mark.parametrize("advantage", [-90.0, 90.0])  # times 1 / 0.5: e^-180 and e^180 leave float32
    def test_normalised_exponentials_stay_finite_where_the_exponentials_do_not(self, advantage: float) -> None:
        weights = awac.advantage_weights(
            tensor([advantage, advantage]), temperature=0.5, weighting="exponential", normalise=True
        )
        assert weights.tolist() == [1.0, 1.0]

    def test_softmax_depends_only_on_differences_and_ignores_max_weight_and_normalise(self) -> None:
        advantages = tensor([-3.0, 0.0, 1.0])
        plain = awac.advantage_weights(advantages, temperature=0.3, weighting="batch_softmax")
        shifted = awac.advantage_weights(advantages + 8.0, temperature=0.3, weighting="batch_softmax")
        bounded = awac.advantage_weights(
            advantages, temperature=0.3, weighting="batch_softmax", max_weight=0.5, normalise=True
        )
        np.testing.assert_allclose(shifted, plain, rtol=1e-5)
        assert torch.equal(bounded, plain)

    @pytest.mark.parametrize("weighting", ["batch_softmax", "exponential", "uniform"])
    def test_carry_no_gradient(self, weighting: Weighting) -> None:
        weights = awac.advantage_weights(leaf([0.5, -0.5]), temperature=1.0, weighting=weighting)
        assert not weights.requires_grad


class TestEffectiveSampleRatio:
    @QUICK
    @given(st.integers(1, 6).flatmap(lambda size: arrays_of(size, low=0.125, high=20.0)), st.integers(-120, 120))
    def test_follows_the_equation_for_weights_of_any_size(self, weights: Array, exponent: int) -> None:
        w = tensor(weights * np.float32(2.0) ** exponent)
        expected = weights.astype(float).sum() ** 2 / (len(weights) * (weights.astype(float) ** 2).sum())
        assert float(awac.effective_sample_ratio(w, w.amax())) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(
        ("weights", "expected"), [([2.0, 2.0], 1.0), ([0.0, 3.0, 0.0, 0.0], 0.25), ([0.0, 0.0], 0.0)]
    )
    def test_literal_values(self, weights: list[float], expected: float) -> None:
        assert float(awac.effective_sample_ratio(tensor(weights), tensor(max(weights)))) == expected

    def test_does_not_hide_weights_that_are_not_finite(self) -> None:
        for bad in (math.inf, math.nan):
            w = tensor([1.0, bad])
            assert not awac.effective_sample_ratio(w, w.amax()).isfinite()


class TestPolicyLoss:
    @QUICK
    @given(st.data(), SIZES)
    def test_is_the_weighted_mean_negative_log_likelihood(self, data: st.DataObject, batch: int) -> None:
        log_prob, weights = data.draw(arrays_of(batch, low=-30, high=30)), data.draw(arrays_of(batch, low=0, high=9))
        found = awac.policy_loss(tensor(log_prob), tensor(weights))
        assert float(found) == pytest.approx(slow_policy_loss(log_prob, weights), rel=1e-4, abs=1e-4)

    def test_raises_each_log_likelihood_in_proportion_to_its_weight(self) -> None:
        log_prob = leaf([-1.0, 5.0, 0.0, 2.0])
        (found,) = gradient(awac.policy_loss(log_prob, tensor([0.0, 1.0, 2.0, 4.0])), log_prob)
        assert found.tolist() == [0.0, -0.25, -0.5, -1.0]  # -w / B

    def test_sends_no_gradient_into_the_weights(self) -> None:
        log_prob, weights = leaf([1.0, 2.0]), leaf([1.0, 1.0])
        loss = awac.policy_loss(log_prob, weights)
        assert torch.autograd.grad(loss, [log_prob, weights], allow_unused=True)[1] is None

    @QUICK
    @given(
        st.data(), SIZES, floats(-50, 50), floats(0.25, 4), st.sampled_from(["batch_softmax", "exponential", "uniform"])
    )
    def test_with_equal_advantages_loss_and_gradient_are_those_of_behaviour_cloning(
        self, data: st.DataObject, batch: int, advantage: float, temperature: float, weighting: Weighting
    ) -> None:
        mean, log_std = (
            leaf(data.draw(arrays_of(batch, 2, low=-1, high=1))),
            leaf(data.draw(arrays_of(2, low=-2, high=0))),
        )
        actions = tensor(data.draw(arrays_of(batch, 2, low=-1, high=1)))
        weights = awac.advantage_weights(
            torch.full((batch,), advantage),
            temperature=temperature,
            weighting=weighting,
            max_weight=100.0,
            normalise=True,
        )
        awac_loss = awac.policy_loss(awac.gaussian_log_prob(mean, log_std, actions), weights)
        cloning_loss = -awac.gaussian_log_prob(mean, log_std, actions).mean()
        assert float(awac_loss.detach()) == pytest.approx(float(cloning_loss.detach()), rel=1e-5, abs=1e-5)
        for found, expected in zip(
            gradient(awac_loss, mean, log_std), gradient(cloning_loss, mean, log_std), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    def test_with_unequal_advantages_the_better_action_wins(self) -> None:
        mean, log_std = leaf([[0.0]]), tensor([0.0])
        actions = tensor([[1.0], [-1.0]])
        weights = awac.advantage_weights(tensor([1.0, -1.0]), temperature=0.5, weighting="batch_softmax")
        loss = awac.policy_loss(awac.gaussian_log_prob(mean, log_std, actions), weights)
        (found,) = gradient(loss, mean)
        assert float(found) < 0.0  # descending the loss moves the mean towards +1, the action with the advantage
