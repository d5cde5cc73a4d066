"""The torch networks against NumPy loops over single networks, and rlkit's initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from learner.adam import Adam
from learner.networks import CriticEnsemble, GaussianPolicy, PublicationStamp, StdBounds, export_policy
from replay_service.policy_weights import PolicySpec

Array64 = npt.NDArray[np.float64]

SPEC = PolicySpec(observation_dim=3, action_dim=2, hidden_sizes=(7, 5))
RLKIT_BOUNDS = StdBounds(min_log_std=-6.0, max_log_std=0.0)
STAMP = PublicationStamp(version=4, grad_steps=300, env_steps=120, unix_seconds=1.5e9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_policy(
    spec: PolicySpec = SPEC, *, bounds: StdBounds = RLKIT_BOUNDS, seed: int = 0, scaled: bool = False
) -> GaussianPolicy:
    return GaussianPolicy(spec, std_bounds=bounds, generator=generator(seed), scale_observations=scaled)


def make_critics(
    hidden_sizes: Sequence[int],
    *,
    num_critics: int = 3,
    layer_norm: bool = False,
    max_q: float | None = None,
    observation_dim: int = 3,
    action_dim: int = 2,
) -> CriticEnsemble:
    return CriticEnsemble(
        observation_dim=observation_dim,
        action_dim=action_dim,
        hidden_sizes=hidden_sizes,
        num_critics=num_critics,
        layer_norm=layer_norm,
        max_q=max_q,
        generator=generator(),
    )


def randomise(module: nn.Module, seed: int) -> None:
    """Give every parameter, biases too, a value that an error would show in."""
    draw = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.8 * torch.randn(parameter.shape, generator=draw))


def batch(rows: int = 11, *, seed: int = 1, observation_dim: int = 3, action_dim: int = 2) -> tuple[Tensor, Tensor]:
    draw = generator(seed)
    return torch.randn(rows, observation_dim, generator=draw), torch.randn(rows, action_dim, generator=draw)


def numpy64(tensor: Tensor) -> Array64:
    return tensor.detach().numpy().astype(np.float64)


def one_critic(critics: CriticEnsemble, index: int, observation: Array64, action: Array64) -> float:
    """Q_index(s, a) of one pair, computed as if this critic stood alone."""
    hidden = np.concatenate([observation, action])
    layers = len(critics.weights)
    for layer in range(layers):
        weight, bias = numpy64(critics.weights[layer])[index], numpy64(critics.biases[layer])[index, 0]
        hidden = np.array([sum(hidden[i] * weight[i, j] for i in range(len(hidden))) for j in range(len(bias))]) + bias
        if layer == layers - 1:
            return float(hidden[0])
        if len(critics.scales):
            scale, shift = numpy64(critics.scales[layer])[index, 0], numpy64(critics.shifts[layer])[index, 0]
            centred = hidden - hidden.mean()
            hidden = centred / math.sqrt((centred**2).mean() + 1e-5) * scale + shift
        hidden = np.where(hidden > 0.0, hidden, 0.0)
    raise AssertionError("a critic has at least one layer")


class TestCriticEnsemble:
    @pytest.mark.parametrize("layer_norm", [False, True])
    @pytest.mark.parametrize("hidden_sizes", [(), (6,), (8, 4), (5, 5, 3)])
    @pytest.mark.parametrize("num_critics", [1, 2, 5])
    def test_equals_as_many_separate_networks(
        self, hidden_sizes: tuple[int, ...], num_critics: int, layer_norm: bool
    ) -> None:
        critics = make_critics(hidden_sizes, num_critics=num_critics, layer_norm=layer_norm)
        randomise(critics, seed=len(hidden_sizes) + num_critics)
        observations, actions = batch()
        found = numpy64(critics(observations, actions))
        rows = list(zip(numpy64(observations), numpy64(actions), strict=True))
        expected = [[one_critic(critics, index, s, a) for s, a in rows] for index in range(num_critics)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("layer_norm", [False, True])
    def test_some_critics_alone_give_what_they_give_among_all(self, layer_norm: bool) -> None:
        critics = make_critics((6, 4), num_critics=5, layer_norm=layer_norm)
        randomise(critics, seed=7)
        members = torch.tensor([3, 1])
        torch.testing.assert_close(critics(*batch(), members), critics(*batch())[members])

    def test_the_gradient_of_one_critic_touches_no_other(self) -> None:
        critics = make_critics((6, 4), layer_norm=True)
        randomise(critics, seed=3)
        critics(*batch())[1].sum().backward()
        for parameter in critics.parameters():
            assert parameter.grad is not None
            assert parameter.grad[1].abs().sum() > 0.0
            assert not parameter.grad[[0, 2]].any()

    def test_clamps_from_above_only(self) -> None:
        free, clamped = make_critics((6,)), make_critics((6,), max_q=-0.25)
        randomise(free, seed=5)
        clamped.load_state_dict(free.state_dict())
        q = free(*batch(200))
        assert q.min() < -1.0  # or the test shows nothing
        assert q.max() > 1.0
        assert torch.equal(clamped(*batch(200)), q.clamp(max=-0.25))

    def test_the_clamp_has_no_gradient_where_it_holds(self) -> None:
        critics = make_critics((), num_critics=2, max_q=0.0)
        with torch.no_grad():
            critics.weights[0].zero_()
            critics.biases[0].copy_(torch.tensor([[[2.0]], [[-2.0]]]))  # the first is clamped, the second is not
        critics(*batch(4)).sum().backward()
        found = critics.biases[0].grad
        assert found is not None
        assert found.flatten().tolist() == [0.0, 4.0]

    def test_one_that_begins_above_the_clamp_everywhere_never_learns_and_is_counted(self) -> None:
        critics = make_critics((64,), num_critics=3, max_q=0.0)
        with torch.no_grad():
            signs = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
            critics.weights[-1].abs_().mul_(signs)  # of hidden units that are never all 0
        first = critics.weights[-1][0].clone()
        optimizer = Adam(critics.parameters(), learning_rate=1e-2)
        assert critics.unlearned() == 3
        for step in range(20):
            for parameter in critics.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            (critics(*batch(64, seed=step)) + 1.0).square().sum().backward()
            optimizer.step()
        assert critics.unlearned() == 1
        assert torch.equal(critics.weights[-1][0], first)

    def test_starts_as_rlkit_does(self) -> None:
        critics = make_critics((64, 36), observation_dim=10, action_dim=6, layer_norm=True)
        # 1 / sqrt(output width), and not of the input width: 1/8, 1/6; the last layer 3e-3.
        for weight, bound in zip(critics.weights, (1 / 8, 1 / 6, 3e-3), strict=True):
            assert_fills(weight, bound)
            assert not torch.equal(weight[0], weight[1])
        assert not any(bias.any() for bias in critics.biases)
        assert all(bool((scale == 1.0).all()) for scale in critics.scales)
        assert not any(shift.any() for shift in critics.shifts)


class TestGaussianPolicy:
    def test_starts_as_rlkit_does(self) -> None:
        policy = make_policy(PolicySpec(observation_dim=16, action_dim=9, hidden_sizes=(64, 36)))
        for layer, bound in zip(policy.layers, (1 / 8, 1 / 6, 1e-3), strict=True):
            assert isinstance(layer, nn.Linear)
            assert_fills(layer.weight, bound)
            assert not layer.bias.any()

    def test_is_a_function_of_the_generators_seed(self) -> None:
        same, other = make_policy(seed=0).state_dict(), make_policy(seed=1).state_dict()
        for name, tensor in make_policy(seed=0).state_dict().items():
            assert torch.equal(tensor, same[name])
        assert not torch.equal(same["layers.0.weight"], other["layers.0.weight"])

    @pytest.mark.parametrize("hidden_sizes", [(), (4,), (7, 5, 3)])
    def test_mean_is_the_tanh_of_a_relu_network(self, hidden_sizes: tuple[int, ...]) -> None:
        policy = make_policy(PolicySpec(3, 2, hidden_sizes))
        randomise(policy, seed=2)
        observations, _ = batch()
        for observation, found in zip(numpy64(observations), numpy64(policy(observations)), strict=True):
            hidden = observation
            for index, layer in enumerate(policy.layers):
                assert isinstance(layer, nn.Linear)
                weight, bias = numpy64(layer.weight), numpy64(layer.bias)
                hidden = np.array([sum(row * hidden) for row in weight]) + bias
                if index < len(policy.layers) - 1:
                    hidden = np.where(hidden > 0.0, hidden, 0.0)
            np.testing.assert_allclose(found, [math.tanh(x) for x in hidden], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("low", "high", "logit", "expected"),
        [
            (-6.0, 0.0, 0.0, -3.0),  # the start: sigma = 0.0498
            (-6.0, 0.0, 50.0, 0.0),
            (-6.0, 0.0, -50.0, -6.0),
            (-6.0, 0.0, math.log(3.0), -1.5),
            (-20.0, 2.0, 0.0, -9.0),
        ],
    )
    def test_log_std_is_a_sigmoid_between_its_bounds(
        self, low: float, high: float, logit: float, expected: float
    ) -> None:
        policy = make_policy(bounds=StdBounds(low, high))
        assert policy.log_std_logit.tolist() == [0.0, 0.0]
        with torch.no_grad():
            policy.log_std_logit.fill_(logit)
        assert policy.log_std().tolist() == pytest.approx([expected] * 2, abs=1e-5)

    @pytest.mark.parametrize(("parameter", "expected"), [(-25.0, -20.0), (0.5, 0.5), (7.0, 2.0)])
    def test_log_std_may_be_cut_off_at_its_bounds_instead(self, parameter: float, expected: float) -> None:
        policy = make_policy(bounds=StdBounds(-20.0, 2.0, "clamp"))
        with torch.no_grad():
            policy.log_std_logit.fill_(parameter)
        assert policy.log_std().tolist() == [expected] * 2

    @pytest.mark.parametrize("bounding", ["sigmoid", "clamp"])
    @pytest.mark.parametrize("initial", [-5.5, -1.0, 0.0])
    def test_log_std_starts_where_it_is_told(self, bounding: Literal["sigmoid", "clamp"], initial: float) -> None:
        policy = make_policy(bounds=StdBounds(-6.0, 2.0, bounding, initial))
        assert policy.log_std().tolist() == pytest.approx([initial] * 2, abs=1e-5)

    def test_an_unbounded_mean_is_the_network_without_its_tanh(self) -> None:
        bounded, unbounded = make_policy(), make_policy(PolicySpec(3, 2, (7, 5), bounded_mean=False))
        randomise(bounded, seed=4)
        unbounded.load_state_dict(bounded.state_dict())
        observations, _ = batch()
        means = unbounded(observations)
        assert means.abs().max() > 1.0
        torch.testing.assert_close(torch.tanh(means), bounded(observations))


class TestObservationScale:
    def test_networks_see_whitened_observations(self) -> None:
        observations, actions = batch(200)
        observations = observations * torch.tensor([2.0, 0.5, 30.0]) + torch.tensor([1.0, -4.0, 100.0])
        scaled, plain = make_policy(scaled=True), make_policy()
        critics = make_critics((6,))
        scaled_critics = CriticEnsemble(
            observation_dim=3, action_dim=2, hidden_sizes=(6,), num_critics=3, layer_norm=False, max_q=None,
            generator=generator(), scale_observations=True,
        )  # fmt: skip
        for network in (scaled, scaled_critics):
            assert network.scale is not None
            network.scale.fit(observations)
        white = (observations - observations.mean(dim=0)) / (observations.std(dim=0) + 1e-3)
        assert white.std(dim=0).tolist() == pytest.approx([1.0] * 3, abs=1e-2)
        torch.testing.assert_close(scaled(observations), plain(white))
        torch.testing.assert_close(scaled_critics(observations, actions), critics(white, actions))

    def test_is_the_identity_until_it_is_fitted(self) -> None:
        observations, _ = batch()
        torch.testing.assert_close(make_policy(scaled=True)(observations), make_policy()(observations))


class TestExport:
    def test_fills_the_message_completely(self) -> None:
        policy = make_policy()
        randomise(policy, seed=6)
        message = export_policy(policy, STAMP)
        assert message.problem() is None
        assert (message.spec, message.version, message.grad_steps) == (SPEC, 4, 300)
        assert (message.env_steps, message.published_unix_seconds) == (120, 1.5e9)
        np.testing.assert_array_equal(message.log_std, policy.log_std().detach().numpy())

    def test_a_message_does_not_change_with_the_policy(self) -> None:
        policy = make_policy()
        message = export_policy(policy, STAMP)
        before = [array.copy() for array in (*message.weights, *message.biases, message.log_std)]
        randomise(policy, seed=7)
        after = [*message.weights, *message.biases, message.log_std]
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def assert_fills(weight: Tensor, bound: float) -> None:
    """Values lie in [-bound, bound], and reach far enough towards both ends that the bound is no smaller one."""
    assert float(weight.detach().abs().max()) <= bound
    assert float(weight.detach().max()) > 0.95 * bound
    assert float(weight.detach().min()) < -0.95 * bound
