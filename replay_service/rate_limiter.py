"""The two-sided limiter that holds `utd_ratio`: the formula, and the learner's side of it.

With E online environment steps stored, G online gradient steps done, E0 = `initial_env_steps`, r = `utd_ratio` and
w = `tolerance_env_steps`, the run stays in the band

    0  <=  r (E - E0) - G          the learner never does more than r updates for an environment step
    E  <=  E0 + w + G / r          the actors are never more than w environment steps ahead

The learner's side is this module. The actors' side is `scripts/admission.lua`, inside Redis, because many actors
must be admitted atomically. Both counters live in Redis beside the data, so the band outlives any process.
"""

from __future__ import annotations

import math


def updates_allowed(*, env_steps: int, online_grad_steps: int, utd_ratio: float, initial_env_steps: int) -> int:
    """How many gradient steps the learner may do now.

    Args:
        env_steps: E, online environment steps stored.
        online_grad_steps: G, gradient steps done since the offline phase ended.
        utd_ratio: r, gradient steps per environment step, > 0.
        initial_env_steps: E0, environment steps before the first online update.

    Returns:
        max(0, floor(r (E - E0)) - G).
    """
    return max(0, math.floor(utd_ratio * (env_steps - initial_env_steps)) - online_grad_steps)


def env_steps_allowed(*, online_grad_steps: int, utd_ratio: float, initial_env_steps: int, tolerance: int) -> int:
    """The number of environment steps that may have been stored or admitted by now (the actors' side).

    The service computes the same in `scripts/admission.lua`; this form serves the doctor and tests.

    Returns:
        E0 + w + floor(G / r).
    """
    return initial_env_steps + tolerance + math.floor(online_grad_steps / utd_ratio)
