"""One AWAC gradient step: (state, batch) -> metrics, in place, without autograd (`learner.passes`).

Order as in the authors' trainer: both losses are computed from the parameters before the step, then critics and
policy are stepped, then the targets follow. `update_order` lets the policy see the stepped critics instead.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from learner import awac
from learner.config import LearnerConfig
from learner.mirror import TransitionBatch
from learner.networks import CriticEnsemble, GaussianPolicy, StdBounds
from learner.passes import CriticPass, PolicyPass, make_gradients
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
    average_policy: GaussianPolicy | None
    """What is published instead of the policy, when `policy_average_rate` is below 1."""
    generator: torch.Generator
    """Draws batches and actions; on the learner's device."""
    grad_steps: int = 0
    workspaces: dict[int, Workspace] = field(default_factory=dict)
    """Buffers of the gradient step, by batch size; no part of what is learned."""


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
    average_policy = None
    if config.policy_average_rate < 1.0:
        average_policy = copy.deepcopy(policy)
        average_policy.requires_grad_(False)
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
        average_policy=average_policy,
        generator=torch.Generator(device=device).manual_seed(seed + 1),
    )


def published_policy(state: LearnerState) -> GaussianPolicy:
    """The policy that actors and evaluator get."""
    return state.policy if state.average_policy is None else state.average_policy


def fit_observation_scale(state: LearnerState, observations: Tensor) -> None:
    """Set the scale of the observations in every network, where they have one, from (B, O) observations."""
    for network in (state.policy, state.average_policy, state.critics, state.target_critics):
        if network is not None and network.scale is not None:
            network.scale.fit(observations)


class Workspace:
    """The passes of one gradient step, with their buffers, for batches of one size."""

    def __init__(self, state: LearnerState, config: LearnerConfig, batch_size: int) -> None:
        make_gradients(state.policy)
        make_gradients(state.critics)
        self.policy = PolicyPass(state.policy, batch_size)
        self.next_policy = PolicyPass(state.policy, batch_size)
        self.critics = CriticPass(state.critics, batch_size)
        self.other_actions = CriticPass(state.critics, batch_size)
        """Asked for the policy's own actions; keeps the buffers of `critics` for their backward pass."""
        self.target_critics = CriticPass(state.target_critics, batch_size, members=config.num_target_critics)


@torch.no_grad()
def gradient_step(state: LearnerState, batch: TransitionBatch, config: LearnerConfig) -> UpdateMetrics:
    """Take one step of AWAC on a batch, in place.

    Args:
        state: is changed.
        batch: B transitions.
        config: which variant of AWAC; the same at every step of a state.

    Returns:
        Metrics as tensors on the device; reading them waits for the device.
    """
    batch_size = len(batch.rewards)
    work = state.workspaces.get(batch_size)
    if work is None:
        work = state.workspaces[batch_size] = Workspace(state, config, batch_size)
    if state.policy.scale is not None:
        batch = batch._replace(
            observations=state.policy.scale(batch.observations),
            next_observations=state.policy.scale(batch.next_observations),
        )
    log_std = state.policy.log_std()
    mean = work.policy.forward(batch.observations)
    q_data = work.critics.forward(batch.observations, batch.actions)
    target = _target(state, work, batch, config, log_std)
    critic_loss = awac.critic_loss(q_data, target)
    q_mean, clamped_ratio = q_data.mean(), _clamped_ratio(q_data, config.max_q)
    work.critics.backward(awac.critic_loss_gradient(q_data, target))
    if config.update_order == "critics_first":
        state.critic_optimizer.step()
        q_data = work.critics.forward(batch.observations, batch.actions)

    value = _value(state, work, batch, config, mean, log_std)
    advantages = q_data.amin(dim=0) - value
    policy_advantages = None
    if config.weighting == "state_normalised":
        samples = _q_of_samples(state, work, batch, config, mean, log_std, config.normaliser_samples)
        policy_advantages = samples - value
    weights = awac.advantage_weights(
        advantages,
        temperature=config.temperature,
        weighting=config.weighting,
        advantage_clip=config.advantage_clip,
        max_weight=config.max_weight,
        normalise=config.normalise_weights,
        policy_advantages=policy_advantages,
    )
    log_prob = awac.gaussian_log_prob(mean, log_std, batch.actions)
    policy_loss = awac.policy_loss(log_prob, weights, reduction=config.policy_loss_reduction)
    mean_gradient, log_std_gradient = awac.policy_loss_gradient(
        mean, log_std, batch.actions, weights, reduction=config.policy_loss_reduction
    )
    work.policy.backward(mean_gradient)
    state.policy.write_log_std_gradient(log_std_gradient)

    if config.update_order == "together":
        state.critic_optimizer.step()
    state.policy_optimizer.step()
    torch._foreach_lerp_(
        list(state.target_critics.parameters()), list(state.critics.parameters()), config.target_update_rate
    )
    if state.average_policy is not None:
        torch._foreach_lerp_(
            list(state.average_policy.parameters()), list(state.policy.parameters()), config.policy_average_rate
        )
    state.grad_steps += 1
    return UpdateMetrics(
        critic_loss=critic_loss,
        policy_loss=policy_loss,
        q_mean=q_mean,
        target_mean=target.mean(),
        advantage_mean=advantages.mean(),
        advantage_std=advantages.std(unbiased=False),
        weight_max=weights.amax(),
        effective_sample_ratio=weights.sum().square() / (weights.square().sum() * batch_size),
        log_prob_mean=log_prob.mean(),
        std_mean=log_std.exp().mean(),
        clamped_ratio=clamped_ratio,
    )


def _target(
    state: LearnerState, work: Workspace, batch: TransitionBatch, config: LearnerConfig, log_std: Tensor
) -> Tensor:
    next_actions = _sample(state, config, work.next_policy.forward(batch.next_observations), log_std)
    members = None
    if config.num_target_critics < config.num_critics:
        order = torch.rand(config.num_critics, generator=state.generator, device=next_actions.device).argsort()
        members = order[: config.num_target_critics]
    next_q = work.target_critics.forward(batch.next_observations, next_actions, members)
    return awac.td_target(
        batch.rewards, batch.discounts, next_q, min_target=config.min_target, max_target=config.max_target
    )


def _value(
    state: LearnerState, work: Workspace, batch: TransitionBatch, config: LearnerConfig, mean: Tensor, log_std: Tensor
) -> Tensor:
    """V(s), (B,): the Q of the mean action, or the mean Q of K sampled ones; minimum over critics each time."""
    if config.value_estimate == "mean_action":
        return work.other_actions.forward(batch.observations, mean).amin(dim=0)
    return _q_of_samples(state, work, batch, config, mean, log_std, config.value_samples).mean(dim=0)


def _q_of_samples(
    state: LearnerState,
    work: Workspace,
    batch: TransitionBatch,
    config: LearnerConfig,
    mean: Tensor,
    log_std: Tensor,
    samples: int,
) -> Tensor:
    """(K, B): the minimum over critics for each of K sampled actions."""
    values = []
    for _ in range(samples):
        actions = _sample(state, config, mean, log_std)
        values.append(work.other_actions.forward(batch.observations, actions).amin(dim=0))
    return torch.stack(values)


def _sample(state: LearnerState, config: LearnerConfig, mean: Tensor, log_std: Tensor) -> Tensor:
    noise = torch.empty_like(mean).normal_(generator=state.generator)
    actions = mean + log_std.exp() * noise
    return actions.clamp(-1.0, 1.0) if config.clip_policy_actions else actions


def _clamped_ratio(q_data: Tensor, max_q: float | None) -> Tensor:
    if max_q is None:
        return torch.zeros((), device=q_data.device)
    return (q_data >= max_q).to(q_data.dtype).mean()
