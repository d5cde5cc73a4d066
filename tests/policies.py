"""Weights of policies that tests act with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from replay_service.policy_weights import PolicySpec, PolicyWeights


def policy_weights(
    spec: PolicySpec,
    *,
    seed: int = 0,
    scale: float = 1.0,
    bias: float | None = None,
    log_std: float | Sequence[float] | None = None,
    version: int = 1,
    env_steps: int = 0,
) -> PolicyWeights:
    """One version of a policy, with drawn numbers.

    Args:
        spec: of the network.
        seed: of what is drawn.
        scale: standard deviation of the weights.
        bias: of every unit; None draws them.
        log_std: of every action, or one each; None draws them.
        version: also tells `grad_steps` and the time of publication from those of other versions.
        env_steps: as published.
    """
    random = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    return PolicyWeights(
        spec=spec,
        version=version,
        grad_steps=10 * version,
        env_steps=env_steps,
        published_unix_seconds=1_700_000_000.5 + version,
        weights=tuple(np.float32(scale) * drawn(*shape) for shape in spec.layer_shapes),
        biases=tuple(
            drawn(rows) if bias is None else np.full(rows, bias, dtype=np.float32) for rows, _ in spec.layer_shapes
        ),
        log_std=drawn(spec.action_dim) if log_std is None else np.full(spec.action_dim, log_std, dtype=np.float32),
    )
