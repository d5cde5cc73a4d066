"""Points to Weights & Biases, for those who ask for it (`--wandb offline` or `online`); the package is an extra."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from replay_service.errors import ConfigError
from replay_service.points import Point

OFF = "off"
MODES = (OFF, "offline", "online")
_PROJECT = "awac-online"
_AXES = {"eval/*": "env_steps", "actor/*": "env_steps", "replay/*": "env_steps", "weights/*": "env_steps",
         "learner/*": "grad_steps", "perf/*": "grad_steps"}  # fmt: skip


def check_available() -> None:
    """Refuse early when the package is not installed.

    Raises:
        ConfigError: says how to install it.
    """
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("wandb: the package is not installed; install it with `pip install 'awac-online[wandb]'`")


class WandbRun:
    """One run of Weights & Biases; a session that resumes our run resumes theirs."""

    def __init__(self, run_dir: Path, *, run_id: str, group: str, mode: str, settings: dict[str, Any]) -> None:
        """Open the run; offline it writes below `run_dir/wandb` and asks nobody.

        Their own variables win: WANDB_PROJECT over `awac-online`, WANDB_RUN_GROUP over the group.

        Args:
            run_dir: our run directory.
            run_id: our run id; theirs is the same with other characters than letters, digits, - and _ replaced.
            group: what runs have in common that differ in their seeds.
            mode: offline or online.
            settings: shown as the run's configuration; holds no secrets.

        Raises:
            ConfigError: the package is not installed, or the service refuses the login.
        """
        check_available()
        import wandb  # an extra: 0.8 s to load, and nobody pays who did not ask

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or _PROJECT,
                group=os.environ.get("WANDB_RUN_GROUP") or group,
                id=re.sub(r"[^A-Za-z0-9_-]", "-", run_id),
                name=run_id,
                dir=str(run_dir),
                mode="online" if mode == "online" else "offline",
                resume="allow" if mode == "online" else None,
                config=settings,
                settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
            )
        except (wandb.errors.UsageError, wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
            raise ConfigError(f"wandb: {error}; --wandb offline needs no login") from error
        for names, axis in _AXES.items():
            self._run.define_metric(names, step_metric=axis)

    def write(self, point: Point) -> None:
        """Log a point with all its x axes."""
        axes = {"env_steps": point.env_steps, "grad_steps": point.grad_steps, "unix_seconds": point.unix_seconds}
        self._run.log({**point.values, **axes})

    def flush(self) -> None:
        """Nothing to do: their own process writes."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
