"""Environment variables that Ray reads once, while it is imported."""

from __future__ import annotations

import os
import secrets


def set_ray_environment(*, private_cluster: bool) -> None:
    """Prepare this process for importing ray; what the user has set stays.

    No usage reports leave the machine. A private cluster gets a token of its own, which lives in the environment of
    its processes and in no file: the token that Ray would make is written where others can read it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if private_cluster and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
