"""One AWAC gradient step: (state, batch) -> metrics, in place.

Order as in the authors' trainer: both losses are computed from the parameters before the step, then critics and
policy are stepped, then the targets follow. `update_order` lets the policy see the stepped critics instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from learner import awac
from learner.config import LearnerConfig
from learner.mirror import TransitionBatch
from learner.networks import CriticEnsemble, GaussianPolicy, StdBounds
from replay_service.experience import ExperienceSpec
from replay_service.policy_weights import PolicySpec


class UpdateMetrics(NamedTuple):
    """Scalars of one gradient step, left on the device."""

    critic_loss: Tensor
    policy_loss: Tensor
    q_mean: Tensor
    """Mean over critics and batch of Q(s, a) on the batch's actions."""
    target_mean: Tensor
    advantage_mean: Tensor
    advantage_std: Tensor
    weight_max: Tensor
    """Largest weight of the batch; the mean weight is 1 for batch_softmax."""
    effective_sample_ratio: Tensor
    """(sum w)^2 / (B sum w^2): 1 when all transitions count alike, 1/B when one alone counts."""
    log_prob_mean: Tensor
    std_mean: Tensor
    """Mean standard deviation of the policy over action dimensions."""
    clamped_ratio: Tensor
    """Share of (critic, transition) pairs at the clamp `max_q`, where the critic's gradient is zero."""


@dataclass(slots=True)
class LearnerState:
    """Everything that a gradient step changes."""

    policy: GaussianPolicy
    critics: CriticEnsemble
    target_critics: CriticEnsemble
    policy_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """Draws batches and actions; on the learner's device."""
    grad_steps: int = 0


def std_bounds(config: LearnerConfig) -> StdBounds:
    """How the settings bound the policy's standard deviation."""
    return StdBounds(config.min_log_std, config.max_log_std, config.std_bounding, config.initial_log_std)


def make_state(config: LearnerConfig, spec: ExperienceSpec, *, seed: int, device: torch.device) -> LearnerState:
    """Networks, targets and optimizers as at the start of a run; a function of (config, spec, seed)."""
    generator = torch.Generator().manual_seed(seed)

    def critics() -> CriticEnsemble:
        return CriticEnsemble(
            observation_dim=spec.observation_dim,
            action_dim=spec.action_dim,
            hidden_sizes=config.critic_hidden_sizes,
            num_critics=config.num_critics,
            layer_norm=config.critic_layer_norm,
            max_q=config.max_q,
            generator=generator,
            scale_observations=config.normalise_observations,
        )

    policy = GaussianPolicy(
        PolicySpec(spec.observation_dim, spec.action_dim, config.policy_hidden_sizes, config.bounded_mean),
        std_bounds=std_bounds(config),
        generator=generator,
        scale_observations=config.normalise_observations,
    ).to(device)
    online, target = critics().to(device), critics().to(device)
    if config.target_initialisation == "copy":
        target.load_state_dict(online.state_dict())
    target.requires_grad_(False)
    policy_adam = torch.optim.Adam if config.policy_weight_decay_form == "l2" else torch.optim.AdamW
    return LearnerState(
        policy=policy,
        critics=online,
        target_critics=target,
        policy_optimizer=policy_adam(
            policy.parameters(), lr=config.policy_learning_rate, weight_decay=config.policy_weight_decay, fused=True
        ),
        critic_optimizer=torch.optim.Adam(online.parameters(), lr=config.critic_learning_rate, fused=True),
        generator=torch.Generator(device=device).manual_seed(seed + 1),
    )


def fit_observation_scale(state: LearnerState, observations: Tensor) -> None:
    """Set the scale of the observations in every network, where they have one, from (B, O) observations."""
    for network in (state.policy, state.critics, state.target_critics):
        if network.scale is not None:
            network.scale.fit(observations)


def gradient_step(state: LearnerState, batch: TransitionBatch, config: LearnerConfig) -> UpdateMetrics:
    """Take one step of AWAC on a batch, in place.

    Args:
        state: is changed.
        batch: B transitions.
        config: which variant of AWAC.

    Returns:
        Metrics as tensors on the device; reading them waits for the device.
    """
    mean = state.policy(batch.observations)
    log_std = state.policy.log_std()
    q_data = state.critics(batch.observations, batch.actions)
    with torch.no_grad():
        target = _target(state, batch, config, log_std)
    critic_loss = awac.critic_loss(q_data, target)
    state.critic_optimizer.zero_grad(set_to_none=True)
    state.policy_optimizer.zero_grad(set_to_none=True)

    if config.update_order == "together":
        advantages, weights = _advantages_and_weights(state, batch, config, mean, log_std, q_data)
        log_prob = awac.gaussian_log_prob(mean, log_std, batch.actions)
        policy_loss = awac.policy_loss(log_prob, weights, reduction=config.policy_loss_reduction)
        # The two losses share no parameter that carries gradient, so one backward pass serves both.
        torch.autograd.backward([critic_loss, policy_loss])
        state.critic_optimizer.step()
    else:
        torch.autograd.backward(critic_loss)
        state.critic_optimizer.step()
        with torch.no_grad():
            moved_q = state.critics(batch.observations, batch.actions)
        advantages, weights = _advantages_and_weights(state, batch, config, mean, log_std, moved_q)
        log_prob = awac.gaussian_log_prob(mean, log_std, batch.actions)
        policy_loss = awac.policy_loss(log_prob, weights, reduction=config.policy_loss_reduction)
        torch.autograd.backward(policy_loss)
    state.policy_optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(
            list(state.target_critics.parameters()), list(state.critics.parameters()), config.target_update_rate
        )
    state.grad_steps += 1
    with torch.no_grad():
        return UpdateMetrics(
            critic_loss=critic_loss.detach(),
            policy_loss=policy_loss.detach(),
            q_mean=q_data.mean(),
            target_mean=target.mean(),
            advantage_mean=advantages.mean(),
            advantage_std=advantages.std(unbiased=False),
            weight_max=weights.amax(),
            effective_sample_ratio=weights.sum().square() / (weights.square().sum() * weights.shape[0]),
            log_prob_mean=log_prob.mean(),
            std_mean=log_std.exp().mean(),
            clamped_ratio=_clamped_ratio(q_data, config.max_q),
        )


def _target(state: LearnerState, batch: TransitionBatch, config: LearnerConfig, log_std: Tensor) -> Tensor:
    next_actions = _sample(state, config, state.policy(batch.next_observations), log_std)
    members = None
    if config.num_target_critics < config.num_critics:
        order = torch.rand(config.num_critics, generator=state.generator, device=next_actions.device).argsort()
        members = order[: config.num_target_critics]
    next_q = state.target_critics(batch.next_observations, next_actions, members)
    return awac.td_target(
        batch.rewards, batch.discounts, next_q, min_target=config.min_target, max_target=config.max_target
    )


@torch.no_grad()
def _advantages_and_weights(
    state: LearnerState, batch: TransitionBatch, config: LearnerConfig, mean: Tensor, log_std: Tensor, q_data: Tensor
) -> tuple[Tensor, Tensor]:
    value = _value(state, batch, config, mean, log_std)
    advantages = q_data.amin(dim=0) - value
    policy_advantages = None
    if config.weighting == "state_normalised":
        policy_advantages = _q_of_samples(state, batch, config, mean, log_std, config.normaliser_samples) - value
    weights = awac.advantage_weights(
        advantages,
        temperature=config.temperature,
        weighting=config.weighting,
        advantage_clip=config.advantage_clip,
        max_weight=config.max_weight,
        normalise=config.normalise_weights,
        policy_advantages=policy_advantages,
    )
    return advantages, weights


def _value(state: LearnerState, batch: TransitionBatch, config: LearnerConfig, mean: Tensor, log_std: Tensor) -> Tensor:
    """V(s), (B,): the Q of the mean action, or the mean Q of K sampled ones; minimum over critics each time."""
    if config.value_estimate == "mean_action":
        mean_action_q: Tensor = state.critics(batch.observations, mean).amin(dim=0)
        return mean_action_q
    return _q_of_samples(state, batch, config, mean, log_std, config.value_samples).mean(dim=0)


def _q_of_samples(
    state: LearnerState, batch: TransitionBatch, config: LearnerConfig, mean: Tensor, log_std: Tensor, samples: int
) -> Tensor:
    """(K, B): the minimum over critics for each of K sampled actions."""
    values = []
    for _ in range(samples):
        actions = _sample(state, config, mean, log_std)
        values.append(state.critics(batch.observations, actions).amin(dim=0))
    return torch.stack(values)


def _sample(state: LearnerState, config: LearnerConfig, mean: Tensor, log_std: Tensor) -> Tensor:
    noise = torch.empty_like(mean).normal_(generator=state.generator)
    actions = mean + log_std.exp() * noise
    return actions.clamp(-1.0, 1.0) if config.clip_policy_actions else actions


def _clamped_ratio(q_data: Tensor, max_q: float | None) -> Tensor:
    if max_q is None:
        return torch.zeros((), device=q_data.device)
    return (q_data >= max_q).float().mean()
