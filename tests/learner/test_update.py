"""One gradient step against a slow second implementation, in float64: single networks, Adam by hand, loops."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.config import PRESETS, LearnerConfig
from learner.mirror import TransitionBatch
from learner.update import (
    LearnerState,
    UpdateMetrics,
    acting_policy,
    evaluated_policy,
    fit_observation_scale,
    gradient_step,
    make_state,
)
from replay_service.experience import ExperienceSpec

SPEC = ExperienceSpec("synthetic", observation_dim=3, action_dim=2, max_episode_steps=20)
CPU = torch.device("cpu")
BATCH_SIZE = 6


def small_config(**changes: Any) -> LearnerConfig:
    sizes: dict[str, Any] = {"policy_hidden_sizes": (7, 5), "critic_hidden_sizes": (6, 4)}
    # Large steps, so that a wrong one is seen in every parameter.
    rates = {"policy_learning_rate": 1e-2, "critic_learning_rate": 2e-2, "target_update_rate": 0.1}
    return LearnerConfig(**{**sizes, **rates, **changes})


def fresh_state(config: LearnerConfig, *, seed: int = 0) -> LearnerState:
    return make_state(config, SPEC, seed=seed, device=CPU)


def float64_state(config: LearnerConfig, *, seed: int = 0) -> LearnerState:
    """A state in double precision with parameters of ordinary size, so that two implementations agree closely."""
    state = fresh_state(config, seed=seed)
    draw = torch.Generator().manual_seed(100 + seed)
    for module in (state.policy, state.critics, state.target_critics):
        module.double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.4 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    for average in (state.average_policy, state.evaluated_average):
        if average is not None:
            average.double()
    return state


def random_batch(seed: int, *, dtype: torch.dtype = torch.float64, size: int = BATCH_SIZE) -> TransitionBatch:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    alive = (torch.rand(size, generator=draw) < 0.8).to(dtype)
    return TransitionBatch(normal(size, 3), normal(size, 2), -normal(size).abs(), 0.9 * alive, normal(size, 3))


def parameters(state: LearnerState) -> dict[str, Tensor]:
    parts = {"policy": state.policy, "critics": state.critics, "targets": state.target_critics}
    return {f"{part}.{name}": p.detach().clone() for part, m in parts.items() for name, p in m.named_parameters()}


# The second implementation.


@dataclass
class SlowAdam:
    """Adam as in its paper, with the L2 penalty added to the gradient, or AdamW."""

    rate: float
    decay: float
    decoupled: bool = False
    steps: int = 0
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)

    def step(self, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in values.items():
            g = gradients[name] + (0.0 if self.decoupled else self.decay * value)
            self.first[name] = 0.9 * self.first.get(name, torch.zeros_like(g)) + 0.1 * g
            self.second[name] = 0.999 * self.second.get(name, torch.zeros_like(g)) + 0.001 * g * g
            m = self.first[name] / (1.0 - 0.9**self.steps)
            v = self.second[name] / (1.0 - 0.999**self.steps)
            kept = value * (1.0 - self.rate * self.decay) if self.decoupled else value
            values[name] = kept - self.rate * m / (v.sqrt() + 1e-8)


def number(tensor: Tensor) -> float:
    return float(tensor.detach())


def slow_critic(values: dict[str, Tensor], index: int, s: Tensor, a: Tensor, config: LearnerConfig) -> Tensor:
    """Q_index(s, a) of one pair."""
    hidden = torch.cat([s, a])
    last = len(config.critic_hidden_sizes)
    for layer in range(last + 1):
        hidden = values[f"weights.{layer}"][index].T @ hidden + values[f"biases.{layer}"][index, 0]
        if layer == last:
            break
        if config.critic_layer_norm:
            centred = hidden - hidden.mean()
            hidden = centred / torch.sqrt((centred**2).mean() + 1e-5)
            hidden = hidden * values[f"scales.{layer}"][index, 0] + values[f"shifts.{layer}"][index, 0]
        hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
    q = hidden[0]
    return q if config.max_q is None else torch.where(q <= config.max_q, q, torch.full_like(q, config.max_q))


def slow_mean(values: dict[str, Tensor], s: Tensor, config: LearnerConfig) -> Tensor:
    hidden = s
    for layer in range(len(config.policy_hidden_sizes) + 1):
        hidden = values[f"layers.{layer}.weight"] @ hidden + values[f"layers.{layer}.bias"]
        if layer < len(config.policy_hidden_sizes):
            hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
    return torch.tanh(hidden) if config.bounded_mean else hidden


class SlowAwac:
    """AWAC with one loop a sum; follows recipe sections 1.1 and 1.2."""

    def __init__(self, state: LearnerState, config: LearnerConfig) -> None:
        self.config = config
        self.policy = {n: p.detach().clone() for n, p in state.policy.named_parameters()}
        self.critics = {n: p.detach().clone() for n, p in state.critics.named_parameters()}
        self.targets = {n: p.detach().clone() for n, p in state.target_critics.named_parameters()}
        decoupled = config.policy_weight_decay_form == "decoupled"
        self.policy_adam = SlowAdam(config.policy_learning_rate, config.policy_weight_decay, decoupled)
        self.critic_adam = SlowAdam(config.critic_learning_rate, 0.0)
        self.generator = torch.Generator().set_state(state.generator.get_state())

    def step(self, batch: TransitionBatch) -> dict[str, float]:
        config = self.config
        rows = range(len(batch.rewards))
        noise = self._noise(batch)
        chosen = list(range(config.num_critics))
        if config.num_target_critics < config.num_critics:
            chosen = torch.rand(config.num_critics, generator=self.generator).argsort().tolist()
            chosen = chosen[: config.num_target_critics]
        value_noise = [self._noise(batch) for _ in range(config.value_samples if self._samples_value else 0)]
        normaliser = config.normaliser_samples if config.weighting == "state_normalised" else 0
        normaliser_noise = [self._noise(batch) for _ in range(normaliser)]

        critics = {n: v.clone().requires_grad_(True) for n, v in self.critics.items()}
        policy = {n: v.clone().requires_grad_(True) for n, v in self.policy.items()}
        low, high = config.min_log_std, config.max_log_std
        if config.std_bounding == "clamp":
            log_std = torch.minimum(
                torch.maximum(policy["log_std_logit"], torch.full_like(policy["log_std_logit"], low)),
                torch.full_like(policy["log_std_logit"], high),
            )
        else:
            log_std = low + (high - low) / (1.0 + torch.exp(-policy["log_std_logit"]))

        targets, log_probs, means = [], [], []
        for b in rows:
            next_action = slow_mean(policy, batch.next_observations[b], config) + torch.exp(log_std) * noise[b]
            next_action = self._clipped(next_action)
            next_q = min(
                number(slow_critic(self.targets, i, batch.next_observations[b], next_action, config)) for i in chosen
            )
            y = float(batch.rewards[b]) + float(batch.discounts[b]) * next_q
            y = y if config.min_target is None else max(y, config.min_target)
            targets.append(y if config.max_target is None else min(y, config.max_target))
            mean = slow_mean(policy, batch.observations[b], config)
            means.append(mean.detach())
            z = (batch.actions[b] - mean) / torch.exp(log_std)
            log_probs.append(-0.5 * (z**2 + 2.0 * log_std + math.log(2.0 * math.pi)).sum())

        critic_losses, q_data = [], np.zeros((config.num_critics, len(rows)))
        for i in range(config.num_critics):
            q = [slow_critic(critics, i, batch.observations[b], batch.actions[b], config) for b in rows]
            q_data[i] = [number(x) for x in q]
            critic_losses.append(torch.stack([(q[b] - targets[b]) ** 2 for b in rows]).mean())
        q_before = q_data.copy()

        # One critic at a time: each is a network of its own, with the gradient of its own loss.
        critic_gradients = {n: torch.zeros_like(v) for n, v in critics.items()}
        for i, loss in enumerate(critic_losses):
            for n, g in zip(critics, torch.autograd.grad(loss, list(critics.values())), strict=True):
                critic_gradients[n][i] = g[i]
        if config.update_order == "critics_first":
            self.critic_adam.step(self.critics, critic_gradients)
            for i in range(config.num_critics):
                q_data[i] = [number(self._q(i, batch.observations[b], batch.actions[b])) for b in rows]

        std = torch.exp(log_std).detach()
        advantages, of_policy = [], []
        for b in rows:
            s = batch.observations[b]
            actions = [means[b]]
            if self._samples_value:
                actions = [self._clipped(means[b] + std * draw[b]) for draw in value_noise]
            of_value = [self._all_q(s, a) for a in actions]
            others = [self._all_q(s, self._clipped(means[b] + std * draw[b])) for draw in normaliser_noise]
            advantages.append(self._advantage(list(q_data[:, b]), of_value))
            of_policy.append([self._advantage(q, of_value) for q in others])
        weights = self._weights(advantages, of_policy)
        total = torch.stack([weights[b] * log_probs[b] for b in rows]).sum()
        policy_loss = -total / (1 if config.policy_loss_reduction == "sum" else len(rows))
        policy_gradients = dict(zip(policy, torch.autograd.grad(policy_loss, list(policy.values())), strict=True))

        if config.update_order == "together":
            self.critic_adam.step(self.critics, critic_gradients)
        self.policy_adam.step(self.policy, policy_gradients)
        tau = config.target_update_rate
        self.targets = {n: (1.0 - tau) * v + tau * self.critics[n] for n, v in self.targets.items()}
        return {
            "critic_loss": sum(number(loss) for loss in critic_losses),
            "policy_loss": number(policy_loss),
            "q_mean": float(q_before.mean()),
            "target_mean": float(np.mean(targets)),
            "advantage_mean": float(np.mean(advantages)),
            "advantage_std": float(np.std(advantages)),
            "weight_max": max(weights),
            "effective_sample_ratio": effective_sample_ratio(weights),
            "log_prob_mean": float(np.mean([number(p) for p in log_probs])),
            "std_mean": number(torch.exp(log_std).mean()),
            "clamped_ratio": 0.0 if config.max_q is None else float((q_before >= config.max_q).mean()),
        }

    @property
    def _samples_value(self) -> bool:
        return self.config.value_estimate == "sample"

    def _noise(self, batch: TransitionBatch) -> Tensor:
        return torch.empty_like(batch.actions).normal_(generator=self.generator)

    def _clipped(self, action: Tensor) -> Tensor:
        return torch.clip(action, -1.0, 1.0) if self.config.clip_policy_actions else action

    def _q(self, index: int, s: Tensor, a: Tensor) -> Tensor:
        return slow_critic(self.critics, index, s, a, self.config)

    def _all_q(self, s: Tensor, a: Tensor) -> list[float]:
        return [number(self._q(i, s, a)) for i in range(self.config.num_critics)]

    def _advantage(self, q: list[float], of_value: list[list[float]]) -> float:
        """What an action is worth, by the critics' `q`, beside the actions of V(s), by the critics' `of_value`."""
        if self.config.advantage_critics == "min":
            return min(q) - sum(min(each) for each in of_value) / len(of_value)
        own = [q[i] - sum(each[i] for each in of_value) / len(of_value) for i in range(len(q))]
        return sum(own) / len(own)

    def _weights(self, advantages: list[float], of_policy: list[list[float]]) -> list[float]:
        config, temperature = self.config, self.config.temperature
        if config.weighting == "uniform":
            return [1.0] * len(advantages)
        clip = math.inf if config.advantage_clip is None else config.advantage_clip
        # Where only ratios count the greatest is taken off, so that no exponential overflows.
        free = config.weighting == "batch_softmax"
        most = max(min(a, clip) for a in advantages) if free else 0.0
        weights = [math.exp((min(a, clip) - most) / temperature) for a in advantages]
        if config.weighting == "state_normalised":
            for b, others in enumerate(of_policy):
                weights[b] /= sum(math.exp(min(a, clip) / temperature) for a in others) / len(others)
        if config.weighting != "batch_softmax" and config.max_weight is not None:
            weights = [min(w, config.max_weight) for w in weights]
        if config.weighting == "batch_softmax" or config.normalise_weights:
            weights = [w * len(weights) / sum(weights) for w in weights]
        return weights


def effective_sample_ratio(weights: list[float]) -> float:
    return sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights))


VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "no clamp": {"max_q": None},
    "layer norm": {"critic_layer_norm": True},
    "value by one sample": {"value_estimate": "sample", "max_q": None},
    "value by three samples": {"value_estimate": "sample", "value_samples": 3, "max_q": None},
    "mean action ignores value_samples": {"value_samples": 3},
    "advantage of each critic": {"advantage_critics": "mean", "max_q": None},
    "advantage of each critic, by samples": {"advantage_critics": "mean", "num_critics": 3, "value_estimate": "sample",
                                             "value_samples": 2, "max_q": None},
    "advantage of each critic, Z(s)": {"advantage_critics": "mean", "weighting": "state_normalised",
                                       "normaliser_samples": 2, "max_q": None},
    "two of four target critics": {"num_critics": 4, "num_target_critics": 2, "max_q": None},
    "one critic": {"num_critics": 1, "num_target_critics": 1},
    "bounded target": {"min_target": -0.7, "max_target": 0.0, "max_q": None},
    "exponential": {"weighting": "exponential", "advantage_clip": None, "max_weight": 1.2},
    "exponential, mean 1": {"weighting": "exponential", "max_weight": 1.2, "normalise_weights": True},
    "behaviour cloning": {"weighting": "uniform"},
    "wide standard deviation": {"min_log_std": -2.0, "max_log_std": 1.0, "temperature": 2.0},
    "strong weight decay": {"policy_weight_decay": 0.3},
    "decoupled weight decay": {"policy_weight_decay": 0.3, "policy_weight_decay_form": "decoupled"},
    "sum over the batch": {"policy_loss_reduction": "sum", "policy_weight_decay": 0.3},
    "Z(s)": {"weighting": "state_normalised", "normaliser_samples": 3, "advantage_clip": None},
    "Z(s), bounded": {"weighting": "state_normalised", "normaliser_samples": 2, "max_weight": 1.1,
                      "normalise_weights": True},
    "critics first": {"update_order": "critics_first", "max_q": None},
    "critics first, Z(s)": {"update_order": "critics_first", "weighting": "state_normalised", "normaliser_samples": 2},
    "clipped policy actions": {"clip_policy_actions": True, "value_estimate": "sample", "max_log_std": 2.0},
    "unbounded mean": {"bounded_mean": False},
    "clamped standard deviation": {"std_bounding": "clamp", "initial_log_std": -0.2, "min_log_std": -0.5},
    "five critics with layer norm": {"num_critics": 5, "critic_layer_norm": True, "max_q": None},
    "linear": {"policy_hidden_sizes": (), "critic_hidden_sizes": ()},
    # Layers of one width share their buffers where no backward pass needs them.
    "four equal layers": {"policy_hidden_sizes": (5,) * 4, "critic_hidden_sizes": (6,) * 4, "max_q": None},
    "four equal layers with layer norm": {"policy_hidden_sizes": (5,) * 4, "critic_hidden_sizes": (6,) * 4,
                                          "critic_layer_norm": True, "max_q": None},
    "strong, small": {**PRESETS["strong"], "policy_hidden_sizes": (5, 5), "critic_hidden_sizes": (6, 6)},
    "paper, small": {**PRESETS["paper"], "policy_hidden_sizes": (5,) * 4, "critic_hidden_sizes": (6,) * 4},
}  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_a_step_equals_the_slow_implementation(changes: dict[str, Any]) -> None:
    config = small_config(**changes)
    state = float64_state(config)
    slow = SlowAwac(state, config)
    for seed in range(4):  # the later steps also show Adam's moments and the targets' lag
        metrics = gradient_step(state, random_batch(seed), config)
        expected_metrics = slow.step(random_batch(seed))
        assert set(expected_metrics) == set(UpdateMetrics._fields)
        for name, value in expected_metrics.items():
            assert float(getattr(metrics, name)) == pytest.approx(value, rel=1e-9, abs=1e-12), name
        for part, values in (("policy", slow.policy), ("critics", slow.critics), ("targets", slow.targets)):
            found = parameters(state)
            for name, expected in values.items():
                np.testing.assert_allclose(found[f"{part}.{name}"], expected, rtol=1e-8, atol=1e-10, err_msg=name)
    assert state.grad_steps == 4
    assert torch.equal(state.generator.get_state(), slow.generator.get_state())


def test_weight_decay_is_an_l2_penalty_on_every_policy_parameter_and_on_no_critic() -> None:
    config = small_config(policy_weight_decay=1e-2, weighting="exponential", advantage_clip=-1e6)
    state = float64_state(config)
    with torch.no_grad():  # critics above the clamp, and targets at it: no error, and no gradient
        state.critics.biases[-1].fill_(50.0)
        state.target_critics.biases[-1].fill_(50.0)
    batch = random_batch(0)._replace(rewards=torch.zeros(BATCH_SIZE, dtype=torch.float64))
    before = parameters(state)
    metrics = gradient_step(state, batch, config)
    assert float(metrics.weight_max) == 0.0  # the likelihood has no gradient either: what is left is decay
    after = parameters(state)
    for name, tensor in before.items():
        if name.startswith("policy."):
            # Adam's first step has the size of the rate, whatever the gradient's; AdamW would move by rate * decay * w.
            np.testing.assert_allclose(after[name] - tensor, -config.policy_learning_rate * tensor.sign(), rtol=1e-2)
        if name.startswith("critics."):
            assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize(("exponent", "counting"), [(-60.0, 1.0), (-88.0, 1.0), (-200.0, 0.0)])
def test_metrics_stay_finite_where_the_squares_of_the_weights_leave_float32(exponent: float, counting: float) -> None:
    config = small_config(weighting="exponential", temperature=0.5, advantage_clip=0.5 * exponent)
    metrics = gradient_step(fresh_state(config), random_batch(0, dtype=torch.float32), config)
    assert all(metric.isfinite() for metric in metrics)
    assert float(metrics.weight_max) == pytest.approx(math.exp(exponent), rel=1e-4, abs=1e-45)
    assert float(metrics.effective_sample_ratio) == pytest.approx(counting, rel=1e-6)


class TestMakeState:
    def test_targets_start_with_weights_of_their_own(self) -> None:
        state = fresh_state(small_config(target_initialisation="independent"))
        for online, target in zip(state.critics.weights, state.target_critics.weights, strict=True):
            assert not torch.equal(online, target)

    def test_or_as_copies_that_then_lag_behind(self) -> None:
        config = small_config(target_initialisation="copy", target_update_rate=0.25)
        state = fresh_state(config)
        start = [p.detach().clone() for p in state.critics.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(start, state.target_critics.parameters(), strict=True))
        gradient_step(state, random_batch(0, dtype=torch.float32), config)
        moved = list(state.critics.parameters())
        assert not torch.equal(moved[0], start[0])
        for old, new, target in zip(start, moved, state.target_critics.parameters(), strict=True):
            torch.testing.assert_close(target.detach(), 0.75 * old + 0.25 * new.detach())

    def test_gives_the_same_state_for_the_same_seed_and_another_for_another(self) -> None:
        config = small_config()
        one, same, other = (parameters(fresh_state(config, seed=seed)) for seed in (3, 3, 4))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not torch.equal(one["policy.layers.0.weight"], other["policy.layers.0.weight"])

    def test_targets_and_generator_are_never_trained(self) -> None:
        state = fresh_state(small_config())
        trained = {id(p) for o in (state.policy_optimizer, state.critic_optimizer) for p in o.parameters}
        assert trained == {id(p) for m in (state.policy, state.critics) for p in m.parameters()}
        assert not any(p.requires_grad for p in state.target_critics.parameters())


def test_the_acting_policy_is_an_average_when_asked() -> None:
    config = small_config(policy_average_rate=0.25)
    state, plain = fresh_state(config), fresh_state(small_config())
    assert acting_policy(plain) is plain.policy
    average = {name: p.detach().clone() for name, p in state.policy.named_parameters()}
    for step in range(3):
        for each in (state, plain):
            gradient_step(each, random_batch(step, dtype=torch.float32), config if each is state else small_config())
        for name, parameter in state.policy.named_parameters():
            average[name] = 0.75 * average[name] + 0.25 * parameter.detach()
    published = dict(acting_policy(state).named_parameters())
    for name, parameter in plain.policy.named_parameters():
        assert torch.equal(parameter, dict(state.policy.named_parameters())[name])  # learning is not touched
        torch.testing.assert_close(published[name].detach(), average[name])
        assert not torch.equal(published[name], parameter)


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.02])
def test_the_evaluated_policy_is_an_average_of_its_own_when_asked(rate: float) -> None:
    config = small_config(policy_average_rate=0.25, evaluated_average_rate=rate)
    state, other = fresh_state(config), fresh_state(small_config(policy_average_rate=0.25))
    assert evaluated_policy(other) is acting_policy(other)
    average = {name: p.detach().double() for name, p in state.policy.named_parameters()}
    for step in range(1, 31):
        gradient_step(state, random_batch(step, dtype=torch.float32), config)
        gradient_step(other, random_batch(step, dtype=torch.float32), small_config(policy_average_rate=0.25))
        share = max(rate, 9 / (9 + step))
        for name, parameter in state.policy.named_parameters():
            average[name] += share * (parameter.detach().double() - average[name])
    for name, parameter in evaluated_policy(state).named_parameters():
        torch.testing.assert_close(parameter.double(), average[name], rtol=1e-5, atol=1e-6)
        assert not parameter.requires_grad
    for name, parameter in acting_policy(other).named_parameters():
        assert torch.equal(parameter, dict(acting_policy(state).named_parameters())[name])  # actors get what they got


def test_the_scale_of_observations_is_fitted_in_every_network() -> None:
    config = small_config(normalise_observations=True, policy_average_rate=0.5, evaluated_average_rate=0.1)
    state = fresh_state(config)
    observations = 3.0 * random_batch(0, dtype=torch.float32, size=64).observations + 1.0
    fit_observation_scale(state, observations)
    for network in (
        state.policy, state.average_policy, state.evaluated_average, state.critics, state.target_critics,
    ):  # fmt: skip
        assert network is not None
        assert network.scale is not None
        torch.testing.assert_close(network.scale.mean, observations.mean(dim=0))
        torch.testing.assert_close(network.scale.std, observations.std(dim=0) + 1e-3)


def test_observations_are_scaled_once_for_all_networks() -> None:
    scaled, plain = small_config(normalise_observations=True), small_config()
    state, other = fresh_state(scaled), fresh_state(plain)
    batch = random_batch(0, dtype=torch.float32, size=64)
    fit_observation_scale(state, 3.0 * batch.observations + 1.0)
    assert state.policy.scale is not None
    white = batch._replace(
        observations=state.policy.scale(batch.observations),
        next_observations=state.policy.scale(batch.next_observations),
    )
    gradient_step(state, batch, scaled)
    gradient_step(other, white, plain)
    for name, tensor in parameters(other).items():
        torch.testing.assert_close(parameters(state)[name], tensor)


def test_the_subset_of_target_critics_is_drawn_anew_each_step() -> None:
    config = small_config(num_target_critics=1, target_update_rate=0.0, max_q=None)
    state = fresh_state(config)
    with torch.no_grad():  # target critic 0 always says -1, critic 1 always -5
        state.target_critics.weights[-1].zero_()
        state.target_critics.biases[-1].copy_(torch.tensor([[[-1.0]], [[-5.0]]]))
    batch = random_batch(0, dtype=torch.float32)
    batch = batch._replace(rewards=torch.zeros(BATCH_SIZE), discounts=torch.ones(BATCH_SIZE))
    drawn = {float(gradient_step(state, batch, config).target_mean) for _ in range(30)}
    assert drawn == {-1.0, -5.0}  # the seed is fixed; over all seeds, 2 in 10^9 would show one value only


@pytest.mark.parametrize("changes", [{}, {"value_estimate": "sample", "value_samples": 2, "num_critics": 3}])
def test_twenty_steps_from_the_same_seed_are_bit_identical(changes: dict[str, Any]) -> None:
    config = small_config(**changes)

    def trained(seed: int) -> dict[str, Tensor]:
        state = fresh_state(config, seed=seed)
        for step in range(20):
            gradient_step(state, random_batch(step, dtype=torch.float32, size=64), config)
        return parameters(state)

    first, second, other = trained(1), trained(1), trained(2)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert not torch.equal(first["policy.layers.0.weight"], other["policy.layers.0.weight"])


def test_a_step_leaves_the_batch_alone() -> None:
    config = small_config()
    batch = random_batch(0, dtype=torch.float32)
    before = copy.deepcopy(batch)
    gradient_step(fresh_state(config), batch, config)
    assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))
