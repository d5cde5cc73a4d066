"""Run a command of another package to its end: cloning needs torch, recording an environment, the launcher neither."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from replay_service.errors import USER_ERROR_EXIT_CODE, AwacError, UserError


class StepFailed(AwacError):
    """A process of a pipeline ended with an error; its own words are on stderr."""


class StepRefused(UserError):
    """A process of a pipeline refused its input; its own words are on stderr."""


def run_module(module: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Run `python -m module arguments` and return what it printed; `environment` is added to this process's own.

    Raises:
        StepRefused: it refused its input.
        StepFailed: it failed in another way.
    """
    command = [sys.executable, "-m", module, *(str(argument) for argument in arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode == USER_ERROR_EXIT_CODE:
        raise StepRefused(f"{module} refused its input (see above)")
    if done.returncode != 0:
        raise StepFailed(f"{module} ended with code {done.returncode}")
    return done.stdout.strip()
