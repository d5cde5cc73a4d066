"""`--actors auto`: how many actors keep the learner fed on this machine, and why."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.experiment import ExperimentConfig
from replay_service.config import AUTO_ACTORS
from replay_service.errors import ConfigError
from replay_service.process import available_cores

FEWEST_ACTORS = 2
"""One of them may crash and be replaced while the other feeds the learner."""
_RESERVE = 1.25
"""Actors stand still while they wait for an answer, for weights, or for their turn of a busy core."""
_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Speed:
    """What a calibration measured of one process that has the machine to itself."""

    per_second: float
    """Environment steps of one actor, or updates of the learner."""
    core_seconds: float
    """CPU time of one of them; all threads together."""


def choose(actor: Speed, learner: Speed, *, utd_ratio: float, cores: int) -> tuple[int, str]:
    """The fewest actors that keep the learner fed, and the reason in one line.

    An update needs 1 / utd_ratio environment steps. Where learner and actors share cores that are too few for both, the
    learner is slower than alone, and so needs fewer steps:

        updates/s = min(alone, cores / (core seconds of an update + core seconds of its steps))

    Args:
        actor: one actor alone.
        learner: the learner alone.
        utd_ratio: updates an environment step.
        cores: of this machine.
    """
    steps_an_update = 1.0 / utd_ratio
    shared = cores / (learner.core_seconds + steps_an_update * actor.core_seconds)
    updates = min(learner.per_second, shared)
    needed = updates * steps_an_update / actor.per_second * _RESERVE
    actors = max(FEWEST_ACTORS, min(cores, math.ceil(needed)))
    reason = (
        f"{actors} actors: the learner makes {_shown(updates)} updates/s here and needs "
        f"{_shown(updates * steps_an_update)} env steps/s; one actor makes {_shown(actor.per_second)}"
    )
    if math.ceil(needed) < FEWEST_ACTORS:
        return actors, f"{reason}; {FEWEST_ACTORS} are the fewest, so that one can be replaced while the other works"
    if math.ceil(needed) > cores:
        return actors, f"{reason}; more than the {cores} cores would bring no more"
    return actors, reason


def _shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def with_measured_actors(resolved: ExperimentConfig) -> tuple[ExperimentConfig, str]:
    """Put a number in the place of 'auto', after a calibration of some seconds.

    Args:
        resolved: complete but for the number of actors.

    Returns:
        The same with the number, and the reason; unchanged, with '', when it has a number.

    Raises:
        ConfigError: the calibration failed.
    """
    if resolved.run.actors != AUTO_ACTORS:
        return resolved, ""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        one = replace(resolved, run=replace(resolved.run, actors=1))
        config.write_text(one.to_toml(), encoding="utf-8")
        # One after the other: each shall have the machine to itself.
        actor = _calibrate("actors.calibration", "--config", str(config))
        learner = _calibrate("learner.calibration", "--config", str(config), "--device", resolved.launcher.device)
    cores = available_cores()
    actors, reason = choose(actor, learner, utd_ratio=resolved.run.utd_ratio, cores=cores)
    return replace(resolved, run=replace(resolved.run, actors=actors)), reason


def _calibrate(module: str, *arguments: str) -> Speed:
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"--actors auto: {module} took more than {_TIMEOUT_S:.0f} s; give a number") from error
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return Speed(float(found["per_second"]), float(found["core_seconds"]))
    except (IndexError, ValueError, KeyError, TypeError) as error:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ConfigError(f"--actors auto: {module} failed and said: {said}; give a number") from error
