"""`PolicyWeights` fixes the policy: torch and NumPy, two readings of one message, act alike."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.policy import NumpyPolicy
from learner.networks import GaussianPolicy, PublicationStamp, StdBounds, export_policy
from replay_service import wire
from replay_service.policy_weights import PolicySpec

RTOL, ATOL = 1e-5, 3e-5
"""Float32 rounding through a few layers, before the tanh (design section 1)."""

SPECS = st.builds(
    PolicySpec,
    observation_dim=st.integers(1, 48),
    action_dim=st.integers(1, 30),
    hidden_sizes=st.lists(st.integers(1, 256), max_size=4).map(tuple),
    bounded_mean=st.booleans(),
)
BOUNDS = st.builds(
    StdBounds,
    min_log_std=st.floats(-20.0, -1.0),
    max_log_std=st.floats(-0.5, 2.0),
    bounding=st.sampled_from(["sigmoid", "clamp"]),
)


@settings(max_examples=60, deadline=None)
@given(SPECS, BOUNDS, st.booleans(), st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 1.5]), st.integers(1, 8))
def test_torch_and_numpy_take_the_same_actions(
    spec: PolicySpec, bounds: StdBounds, scaled: bool, seed: int, scale: float, batch: int
) -> None:
    draw = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    policy = GaussianPolicy(spec, std_bounds=bounds, generator=generator, scale_observations=scaled)
    if policy.scale is not None:
        policy.scale.fit(torch.from_numpy(draw.normal(0.3, 1.5, (50, spec.observation_dim)).astype(np.float32)))
    with torch.no_grad():
        for parameter in policy.parameters():
            # Weights of a size that keeps activations of order 1 through all layers: the tolerances are for those.
            width = parameter.shape[-1] if parameter.ndim == 2 else 1
            values = draw.standard_normal(parameter.shape, dtype=np.float32) * scale / np.sqrt(width)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    observations = draw.standard_normal((batch, spec.observation_dim), dtype=np.float32)
    noise = draw.standard_normal((batch, spec.action_dim), dtype=np.float32)

    message = wire.encode_policy_weights(export_policy(policy, PublicationStamp(1, 0, 0, 0.0)))
    acting = NumpyPolicy(wire.decode_policy_weights(message))
    with torch.no_grad():
        torch_means = policy(torch.from_numpy(observations))
        torch_actions = torch_means + policy.log_std().exp() * torch.from_numpy(noise)
    numpy_actions = np.stack([acting.act(s, n) for s, n in zip(observations, noise, strict=True)])
    np.testing.assert_allclose(acting.mean(observations), torch_means.numpy(), rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(numpy_actions, torch_actions.numpy(), rtol=RTOL, atol=ATOL)
