"""What a learning curve can show on its axes; alone, because the command line needs no more of curves than this."""

from __future__ import annotations

from typing import Literal, get_args

Metric = Literal["success_final", "success_any", "success_fraction", "episode_return"]
Axis = Literal["env_steps", "grad_steps"]

METRICS: tuple[Metric, ...] = get_args(Metric)
