"""One AWAC gradient step: (state, batch) -> metrics, in place, without autograd (`learner.passes`).

Order as in the authors' trainer: both losses are computed from the parameters before the step, then critics and
policy are stepped, then the targets follow. `update_order` lets the policy see the stepped critics instead.

The rows of a batch are shared out to lanes (`learner.lanes`). Each carries its own as far as no row needs another one:
to the critics' gradients and the advantages, and, once the weights are known, to the policy's gradients. The shares'
gradients are added in the order of the lanes, so a number of lanes gives the same bits every time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from learner import awac
from learner.adam import Adam
from learner.config import LearnerConfig
from learner.lanes import Lanes
from learner.mirror import TransitionBatch
from learner.networks import CriticEnsemble, GaussianPolicy, StdBounds
from learner.passes import CriticPass, PolicyPass, own_gradients
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
    """(sum w)^2 / (B sum w^2): 1 when all transitions count alike, 1/B when one alone counts, 0 when none does."""
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
    policy_optimizer: Adam
    critic_optimizer: Adam
    average_policy: GaussianPolicy | None
    """What actors get instead of the policy, when `policy_average_rate` is below 1."""
    evaluated_average: GaussianPolicy | None
    """What the evaluator gets, when `evaluated_average_rate` is set."""
    generator: torch.Generator
    """Draws batches and actions; on the learner's device."""
    grad_steps: int = 0
    lanes: Lanes = field(default_factory=Lanes)
    """Threads that share a batch; no part of what is learned, but another number of them rounds otherwise."""
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

    def average(wanted: bool) -> GaussianPolicy | None:
        return copy.deepcopy(policy).requires_grad_(False) if wanted else None

    online, target = critics().to(device), critics().to(device)
    if config.target_initialisation == "copy":
        target.load_state_dict(online.state_dict())
    target.requires_grad_(False)
    return LearnerState(
        policy=policy,
        critics=online,
        target_critics=target,
        policy_optimizer=Adam(
            policy.parameters(),
            learning_rate=config.policy_learning_rate,
            weight_decay=config.policy_weight_decay,
            decoupled=config.policy_weight_decay_form == "decoupled",
        ),
        critic_optimizer=Adam(online.parameters(), learning_rate=config.critic_learning_rate),
        average_policy=average(config.policy_average_rate < 1.0),
        evaluated_average=average(config.evaluated_average_rate is not None),
        generator=torch.Generator(device=device).manual_seed(seed + 1),
    )


def acting_policy(state: LearnerState) -> GaussianPolicy:
    """The policy that actors get."""
    return state.policy if state.average_policy is None else state.average_policy


def evaluated_policy(state: LearnerState) -> GaussianPolicy:
    """The policy that the evaluator gets."""
    return acting_policy(state) if state.evaluated_average is None else state.evaluated_average


def named_tensors(state: LearnerState) -> dict[str, Tensor]:
    """Every tensor of the state under a stable name; the tensors themselves, not copies.

    Before their first step, those of the optimizers are the zeros that it begins with.
    """
    named: dict[str, Tensor] = {"generator": state.generator.get_state()}
    modules = {
        "policy": state.policy,
        "average_policy": state.average_policy,
        "evaluated_average": state.evaluated_average,
        "critics": state.critics,
        "targets": state.target_critics,
    }
    for part, module in modules.items():
        if module is None:
            continue
        named |= {f"{part}.{name}": tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    for part, optimizer, module in (
        ("policy_optimizer", state.policy_optimizer, state.policy),
        ("critic_optimizer", state.critic_optimizer, state.critics),
    ):
        for name, parameter in module.named_parameters():
            slots = optimizer.moments(parameter)
            named |= {f"{part}.{name}.{slot}": tensor for slot, tensor in slots.items()}
    return named


def fit_observation_scale(state: LearnerState, observations: Tensor) -> None:
    """Set the scale of the observations in every network, where they have one, from (B, O) observations."""
    for network in (
        state.policy, state.average_policy, state.evaluated_average, state.critics, state.target_critics,
    ):  # fmt: skip
        if network is not None and network.scale is not None:
            network.scale.fit(observations)


@dataclass(slots=True)
class _Lane:
    """The passes of one share of the batch, with their buffers."""

    rows: slice
    policy: PolicyPass
    next_policy: PolicyPass
    critics: CriticPass
    other_actions: CriticPass
    """Asked for the policy's own actions; keeps the buffers of `critics` for their backward pass."""
    target_critics: CriticPass
    policy_gradients: dict[Tensor, Tensor]
    """By parameter: of this share alone. Those of the first lane are the parameters' own `grad`."""
    critic_gradients: dict[Tensor, Tensor]
    log_std_gradient: Tensor
    """(A,)."""
    mean: Tensor
    """(rows, A): the policy's mean actions; the policy's pass owns it."""


class Workspace:
    """Buffers of the gradient step, for batches of one size."""

    def __init__(self, state: LearnerState, config: LearnerConfig, batch_size: int) -> None:
        policy_gradients, critic_gradients = own_gradients(state.policy), own_gradients(state.critics)
        self.lanes: list[_Lane] = []
        for rows in state.lanes.shares(batch_size):
            if self.lanes:
                policy_gradients = {key: torch.zeros_like(value) for key, value in policy_gradients.items()}
                critic_gradients = {key: torch.zeros_like(value) for key, value in critic_gradients.items()}
            size = rows.stop - rows.start
            lane = _Lane(
                rows=rows,
                policy=PolicyPass(state.policy, size, gradients=policy_gradients),
                next_policy=PolicyPass(state.policy, size),
                critics=CriticPass(state.critics, size, gradients=critic_gradients),
                other_actions=CriticPass(state.critics, size),
                target_critics=CriticPass(state.target_critics, size, members=config.num_target_critics),
                policy_gradients=policy_gradients,
                critic_gradients=critic_gradients,
                log_std_gradient=torch.zeros_like(state.policy.log_std_logit),
                mean=torch.empty(0),
            )
            self.lanes.append(lane)
        like = state.critics.weights[0]
        self.q_data = like.new_empty(config.num_critics, batch_size)
        self.target, self.advantages, self.log_prob = (like.new_empty(batch_size) for _ in range(3))
        self.policy_advantages: Tensor | None = None
        if config.weighting == "state_normalised":
            self.policy_advantages = like.new_empty(config.normaliser_samples, batch_size)
        self._state, self._config = state, config

    def on_lanes(self, work: Callable[[int], None]) -> None:
        """Let every lane that has rows do something, given its number."""
        if len(self.lanes) == 1:
            work(0)
        else:
            self._state.lanes.run(lambda index: work(index) if index < len(self.lanes) else None)

    def step_critics(self) -> None:
        """Add up the lanes' gradients and step the critics."""
        first, *others = self.lanes
        for lane in others:
            torch._foreach_add_(list(first.critic_gradients.values()), list(lane.critic_gradients.values()))
        self._state.critic_optimizer.step()

    def step_policy(self) -> None:
        """Add up the lanes' gradients, step the policy, and let its averages follow."""
        state, (first, *others) = self._state, self.lanes
        for lane in others:
            torch._foreach_add_(list(first.policy_gradients.values()), list(lane.policy_gradients.values()))
            first.log_std_gradient.add_(lane.log_std_gradient)
        state.policy.write_log_std_gradient(first.log_std_gradient)
        state.policy_optimizer.step()
        parameters: list[Tensor] = list(state.policy.parameters())
        if state.average_policy is not None:
            averages: list[Tensor] = list(state.average_policy.parameters())
            torch._foreach_lerp_(averages, parameters, self._config.policy_average_rate)
        if state.evaluated_average is not None and self._config.evaluated_average_rate is not None:
            # The optimizer's count lies on the device, so that a CUDA graph counts on.
            steps = state.policy_optimizer.moments(parameters[0])["step"]
            rate = awac.average_rate(steps, self._config.evaluated_average_rate)
            for average, parameter in zip(state.evaluated_average.parameters(), parameters, strict=True):
                average.lerp_(parameter, rate)

    def move_targets(self) -> None:
        """Let the target critics follow the critics."""
        state = self._state
        torch._foreach_lerp_(
            list(state.target_critics.parameters()), list(state.critics.parameters()), self._config.target_update_rate
        )


@dataclass(frozen=True, slots=True)
class _Noise:
    """Everything random of one gradient step, drawn before the batch is shared out."""

    next_actions: Tensor
    """(B, A), standard normal."""
    members: Tensor | None
    """(M,) int64: the target critics that are asked; None asks all."""
    value: list[Tensor]
    """(B, A) each, for V(s) by samples."""
    normaliser: list[Tensor]
    """(B, A) each, for Z(s)."""


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
    std = log_std.exp()
    noise = _draw(state, config, batch.actions)
    parts = [TransitionBatch(*(tensor[lane.rows] for tensor in batch)) for lane in work.lanes]
    together = config.update_order == "together"

    def evaluate(index: int) -> None:
        _evaluate(work, index, parts[index], config, noise, std)
        if together:
            _compare(work, index, parts[index], config, noise, std, q_data=work.q_data[:, work.lanes[index].rows])

    def compare(index: int) -> None:
        part = parts[index]
        q_data = work.lanes[index].critics.forward(part.observations, part.actions)
        _compare(work, index, part, config, noise, std, q_data=q_data)

    work.on_lanes(evaluate)
    if not together:
        work.step_critics()
        work.on_lanes(compare)
    weights = awac.advantage_weights(
        work.advantages,
        temperature=config.temperature,
        weighting=config.weighting,
        advantage_clip=config.advantage_clip,
        max_weight=config.max_weight,
        normalise=config.normalise_weights,
        policy_advantages=work.policy_advantages,
    )
    work.on_lanes(lambda index: _imitate(work, index, parts[index], config, log_std, weights))
    metrics = _metrics(work, config, weights, std)

    def step(index: int) -> None:
        if index == 0:
            work.step_policy()
        if index == len(work.lanes) - 1:
            if together:
                work.step_critics()
            work.move_targets()

    work.on_lanes(step)
    state.grad_steps += 1
    return metrics


def _draw(state: LearnerState, config: LearnerConfig, like: Tensor) -> _Noise:
    def normal() -> Tensor:
        return torch.empty_like(like, memory_format=torch.contiguous_format).normal_(generator=state.generator)

    next_actions, members = normal(), None
    if config.num_target_critics < config.num_critics:
        order = torch.rand(config.num_critics, generator=state.generator, device=like.device).argsort()
        members = order[: config.num_target_critics]
    samples = config.value_samples if config.value_estimate == "sample" else 0
    normaliser = config.normaliser_samples if config.weighting == "state_normalised" else 0
    return _Noise(next_actions, members, [normal() for _ in range(samples)], [normal() for _ in range(normaliser)])


def _evaluate(
    work: Workspace, index: int, part: TransitionBatch, config: LearnerConfig, noise: _Noise, std: Tensor
) -> None:
    """The critics' target, values and gradients of one share."""
    lane, rows = work.lanes[index], work.lanes[index].rows
    lane.mean = lane.policy.forward(part.observations)
    next_mean = lane.next_policy.forward(part.next_observations)
    next_actions = _sample(next_mean, std, noise.next_actions[rows], config)
    next_q = lane.target_critics.forward(part.next_observations, next_actions, noise.members)
    target = awac.td_target(
        part.rewards, part.discounts, next_q, min_target=config.min_target, max_target=config.max_target
    )
    q_data = lane.critics.forward(part.observations, part.actions)
    lane.critics.backward(awac.critic_loss_gradient(q_data, target, batch_size=len(work.target)))
    work.target[rows] = target
    work.q_data[:, rows] = q_data


def _compare(
    work: Workspace,
    index: int,
    part: TransitionBatch,
    config: LearnerConfig,
    noise: _Noise,
    std: Tensor,
    *,
    q_data: Tensor,
) -> None:
    """The advantages of one share: what its actions are worth beside the policy's own."""
    lane, rows = work.lanes[index], work.lanes[index].rows

    def over_critics(values: Tensor) -> Tensor:
        # The mean of differences is the difference of means: each critic is compared with itself.
        return values.amin(dim=0) if config.advantage_critics == "min" else values.mean(dim=0)

    def value_of(actions: Tensor) -> Tensor:
        return over_critics(lane.other_actions.forward(part.observations, actions))

    def values_of_samples(draws: list[Tensor]) -> Tensor:
        return torch.stack([value_of(_sample(lane.mean, std, draw[rows], config)) for draw in draws])

    if config.value_estimate == "mean_action":
        value = value_of(lane.mean)
    else:
        value = values_of_samples(noise.value).mean(dim=0)
    torch.sub(over_critics(q_data), value, out=work.advantages[rows])
    if work.policy_advantages is not None:
        work.policy_advantages[:, rows] = values_of_samples(noise.normaliser) - value


def _imitate(
    work: Workspace, index: int, part: TransitionBatch, config: LearnerConfig, log_std: Tensor, weights: Tensor
) -> None:
    """The policy's gradients of one share."""
    lane, rows = work.lanes[index], work.lanes[index].rows
    work.log_prob[rows] = awac.gaussian_log_prob(lane.mean, log_std, part.actions)
    mean_gradient, lane.log_std_gradient = awac.policy_loss_gradient(
        lane.mean, log_std, part.actions, weights[rows],
        reduction=config.policy_loss_reduction, batch_size=len(weights),
    )  # fmt: skip
    lane.policy.backward(mean_gradient)


def _metrics(work: Workspace, config: LearnerConfig, weights: Tensor, std: Tensor) -> UpdateMetrics:
    q_data, log_prob = work.q_data, work.log_prob
    clamped = torch.zeros((), device=q_data.device)
    if config.max_q is not None:
        clamped = (q_data >= config.max_q).to(q_data.dtype).mean()
    weight_max = weights.amax()
    return UpdateMetrics(
        critic_loss=awac.critic_loss(q_data, work.target),
        policy_loss=awac.policy_loss(log_prob, weights, reduction=config.policy_loss_reduction),
        q_mean=q_data.mean(),
        target_mean=work.target.mean(),
        advantage_mean=work.advantages.mean(),
        advantage_std=work.advantages.std(unbiased=False),
        weight_max=weight_max,
        effective_sample_ratio=awac.effective_sample_ratio(weights, weight_max),
        log_prob_mean=log_prob.mean(),
        std_mean=std.mean(),
        clamped_ratio=clamped,
    )


def _sample(mean: Tensor, std: Tensor, noise: Tensor, config: LearnerConfig) -> Tensor:
    actions = torch.addcmul(mean, std, noise)
    return actions.clamp(-1.0, 1.0) if config.clip_policy_actions else actions
