"""AWAC's losses as pure functions.

Nair et al. 2020, "Accelerating Online Reinforcement Learning with Offline Datasets" (arXiv:2006.09359), as its
authors' code runs it. B batch, A action, N critics, K sampled actions; float32 throughout. Equation numbers are those
of the ICLR 2021 submission: (3) policy evaluation, (9) policy update.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

_LOG_2_PI = math.log(2.0 * math.pi)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-density of actions under N(mean, diag(exp(log_std))^2), summed over the action dimensions.

        log pi(a|s) = -1/2 sum_j [ ((a_j - mu_j) / sigma_j)^2 + 2 log sigma_j + log 2 pi ]

    The density is the unsquashed one: the mean is bounded by a tanh, the sample is not (rlkit's GaussianPolicy).

    Args:
        mean: (B, A).
        log_std: (A,), the same for every state.
        actions: (B, A), as stored, not clipped.

    Returns:
        (B,), in nats.
    """
    scaled = (actions - mean) * torch.exp(-log_std)
    return -0.5 * (scaled.square() + 2.0 * log_std + _LOG_2_PI).sum(dim=-1)


def td_target(
    rewards: Tensor,
    discounts: Tensor,
    next_q: Tensor,
    *,
    min_target: float | None = None,
    max_target: float | None = None,
) -> Tensor:
    """Bootstrapped target of the critics, equation (3).

        y = r + discount * min_i Qbar_i(s', a'),   a' ~ pi(.|s')

    Args:
        rewards: (B,), the n-step sum of discounted rewards.
        discounts: (B,), gamma^n, or 0 after a terminal state.
        next_q: (N, B), target critics at the next state; the minimum is taken over N.
        min_target: lower bound of the target, or None.
        max_target: upper bound of the target, or None.

    Returns:
        (B,), no gradient.
    """
    target = rewards + discounts * next_q.amin(dim=0)
    if min_target is not None or max_target is not None:
        target = target.clamp(min=min_target, max=max_target)
    return target.detach()


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Squared error of every critic against the common target, equation (3).

        L = sum_i mean_b (Q_i(s_b, a_b) - y_b)^2

    The sum over critics makes each critic's gradient that of its own mean squared error.

    Args:
        q: (N, B), carries gradient.
        target: (B,), no gradient.

    Returns:
        A scalar.
    """
    return (q - target).square().mean(dim=1).sum()


def critic_loss_gradient(q: Tensor, target: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Derivative of `critic_loss` by q: 2 (Q_i(s_b, a_b) - y_b) / B, (N, B).

    Args:
        q: (N, B), or the columns of some of the batch.
        target: (B,), or the same of it.
        batch_size: of the whole batch; None when q is all of it.
    """
    return (q - target) * (2.0 / (batch_size or q.shape[1]))


def advantage_weights(
    advantages: Tensor,
    *,
    temperature: float,
    weighting: Literal["batch_softmax", "exponential", "state_normalised", "uniform"],
    advantage_clip: float | None = None,
    max_weight: float | None = None,
    normalise: bool = False,
    policy_advantages: Tensor | None = None,
) -> Tensor:
    """Weight of each transition's log-likelihood in the policy update, equation (9), with Z(s) only where asked.

        A' = min(A, advantage_clip)
        batch_softmax:  w_b = B * softmax_b(A' / lambda)         (the authors' code; mean weight 1)
        exponential:    w_b = min(exp(A'_b / lambda), max_weight), divided by the batch mean if `normalise`
        state_normalised: the same of exp(A'_b / lambda) / Z(s_b), with Z(s) = mean_k exp(A'(s, a_k) / lambda) over
                        actions of the policy                    (the paper's "Use Z(s)", appendix, Table 1)
        uniform:        w_b = 1                                  (behaviour cloning)

    In a softmax over the batch one sample's weight depends on the others'; in the paper's equation it does not.

    Args:
        advantages: (B,), A(s, a) by the smallest or the mean critic, in units of return.
        temperature: lambda, in units of return, > 0.
        weighting: which of the four.
        advantage_clip: upper bound of the advantage, in units of return, or None.
        max_weight: upper bound of an exponential or state-normalised weight, or None.
        normalise: whether exponential or state-normalised weights are scaled to mean 1.
        policy_advantages: (K, B), the same A(s, a_k) of K actions of the policy; for state_normalised alone.

    Returns:
        (B,), non-negative, no gradient.

    Raises:
        ValueError: `policy_advantages` is missing for state_normalised.
    """
    if weighting == "uniform":
        return torch.ones_like(advantages)
    scores = _scaled(advantages, temperature, advantage_clip)
    if weighting == "state_normalised":
        if policy_advantages is None:
            raise ValueError("expected policy_advantages (K, B) for state_normalised weights, got None")
        log_sum = torch.logsumexp(_scaled(policy_advantages, temperature, advantage_clip), dim=0)
        scores = scores - (log_sum - math.log(policy_advantages.shape[0]))
    if weighting != "batch_softmax" and max_weight is not None:
        # Bounding the exponent bounds the weight, and keeps exp() finite.
        scores = scores.clamp(max=math.log(max_weight))
    if weighting == "batch_softmax" or normalise:
        # exp(x) over its batch mean is a softmax times B, which neither overflows nor divides 0 by 0.
        return torch.softmax(scores, dim=0) * scores.shape[0]
    return torch.exp(scores)


def effective_sample_ratio(weights: Tensor, largest: Tensor) -> Tensor:
    """Share of the batch that counts: (sum w)^2 / (B sum w^2), from 1 / B to 1; 0 when all weights are 0.

    Args:
        weights: (B,), non-negative, of any size that float32 holds.
        largest: (), their maximum.

    Returns:
        A scalar.
    """
    tiny = torch.finfo(weights.dtype).tiny
    # Of the weights themselves the squares would leave float32 at exp(-52) and at exp(44).
    shares = weights / largest.clamp(min=tiny)
    return shares.mean().square() / shares.square().mean().clamp(min=tiny)


def _scaled(advantages: Tensor, temperature: float, advantage_clip: float | None) -> Tensor:
    scores = advantages.detach()
    if advantage_clip is not None:
        scores = scores.clamp(max=advantage_clip)
    return scores / temperature


def policy_loss(log_prob: Tensor, weights: Tensor, *, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Weighted negative log-likelihood of the batch's own actions, equation (9).

        L = -mean_b [ w_b * log pi(a_b|s_b) ],   or the sum over b (d3rlpy)

    Args:
        log_prob: (B,), carries gradient.
        weights: (B,), no gradient.
        reduction: over the batch.

    Returns:
        A scalar.
    """
    weighted = weights.detach() * log_prob
    return -(weighted.mean() if reduction == "mean" else weighted.sum())


def policy_loss_gradient(
    mean: Tensor,
    log_std: Tensor,
    actions: Tensor,
    weights: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Derivatives of `policy_loss` with `gaussian_log_prob` in it, by the mean and by the log standard deviation.

        dL/dmu_bj = -c w_b (a_bj - mu_bj) / sigma_j^2
        dL/dlog sigma_j = -c sum_b w_b [ ((a_bj - mu_bj) / sigma_j)^2 - 1 ],   c = 1/B, or 1 for a sum

    Args:
        mean: (B, A), or the rows of some of the batch.
        log_std: (A,).
        actions: (B, A), or the same of it.
        weights: (B,), or the same of it.
        reduction: as in `policy_loss`.
        batch_size: of the whole batch; None when these are all of it.

    Returns:
        (B, A) and (A,); of some of the batch, the second is their part of the sum.
    """
    inverse_std = torch.exp(-log_std)
    scaled = (actions - mean) * inverse_std
    share = weights.unsqueeze(-1) * (-1.0 if reduction == "sum" else -1.0 / (batch_size or mean.shape[0]))
    return share * scaled * inverse_std, (share * (scaled.square() - 1.0)).sum(dim=0)


def average_rate(steps: Tensor, rate: float) -> Tensor:
    """Polyak rate of an average of parameters that forgets where it began: max(rate, 9 / (9 + steps)).

    Until the average is 1 / rate steps long, it is over about the last tenth of all steps, so that little of the
    untrained parameters stays in it.

    Args:
        steps: (), steps taken, with the one whose parameters come in; at least 1.
        rate: the lowest, from about 9 / rate steps on; in (0, 1].

    Returns:
        () on the device of `steps`.
    """
    return (9.0 / (9.0 + steps)).clamp(min=rate)
