"""`launcher video`: film the evaluator's own episodes with a policy version that the run still has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actors.config import EvaluatorConfig
from launcher.role_command import run_module
from launcher.wording import percent
from replay_service import wire
from replay_service.config import RunConfig, require_between
from replay_service.errors import ConfigError
from replay_service.policy_weights import PolicyWeights
from replay_service.reports import Evaluation

RENDERER_VARIABLE = "MUJOCO_GL"
RENDERERS = ("egl", "osmesa")
"""In this order: EGL draws on the GPU where there is one."""

_PROBE_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Footage:
    """A film, and what was played in it."""

    path: Path
    version: int
    episodes: list[dict[str, Any]]
    """Fields of `actors.evaluation.EpisodeScore` each."""
    recorded: Evaluation | None
    """What the evaluator found for this version over all its episodes, when it has judged it."""

    def lines(self) -> list[str]:
        """What to tell the user."""
        told = []
        for index, episode in enumerate(self.episodes, start=1):
            goal = ""
            if episode["success_steps"] is not None:
                met = f"met at {episode['success_steps']} steps" if episode["success_steps"] else "never met"
                goal = f", goal {met}, {'met' if episode['success_final'] else 'not met'} at the last"
            told.append(f"episode {index}: {episode['length']} steps, return {episode['episode_return']:.1f}{goal}")
        found = self.recorded
        if found is not None and found.success_any is not None:
            told.append(
                f"the evaluator found, over {found.episodes} episodes: success {percent(found.success_any)} at any "
                f"step, {percent(found.success_final)} at the last"
            )
        return [*told, str(self.path)]


def check_packages() -> None:
    """Refuse early when the optional packages are missing.

    Raises:
        ConfigError: names what to install.
    """
    missing = [name for name in ("imageio", "imageio_ffmpeg", "PIL") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"launcher video needs {', '.join(missing)}: pip install -e '.[video]'")


def choose_renderer() -> str:
    """A renderer of MuJoCo's that works here; the user's own choice in MUJOCO_GL is tried alone.

    Raises:
        ConfigError: none works; the text says what to install.
    """
    chosen = os.environ.get(RENDERER_VARIABLE)
    reasons = []
    for name in (chosen,) if chosen else RENDERERS:
        command = [sys.executable, "-m", "actors.rendering"]
        try:
            done = subprocess.run(command, env=_rendering_with(name), capture_output=True, text=True, check=False,
                                  timeout=_PROBE_TIMEOUT_S)  # fmt: skip
        except subprocess.TimeoutExpired:
            reasons.append(f"{name}: no answer in {_PROBE_TIMEOUT_S:.0f} s")
            continue
        if done.returncode == 0:
            return name
        words = done.stderr.strip().splitlines()
        reasons.append(f"{name}: {words[-1] if words else f'ended with code {done.returncode}'}")
    raise ConfigError(
        f"nothing can draw here ({'; '.join(reasons)}): install a renderer, with an NVIDIA driver or Mesa "
        "`apt-get install libegl1`, without a GPU `apt-get install libosmesa6`"
        + (f", or unset {RENDERER_VARIABLE}" if chosen else "")
    )


def film(
    run: RunConfig,
    evaluator: EvaluatorConfig,
    chosen: tuple[PolicyWeights, Evaluation | None],
    output: Path,
    *,
    episodes: int,
) -> Footage:
    """Film the evaluator's first episodes.

    Args:
        run: names the environment.
        evaluator: how many episodes it plays, and their seeds.
        chosen: a policy, and its evaluation when there is one.
        output: MP4 to write.
        episodes: how many of the evaluator's.

    Raises:
        ConfigError: there are not that many episodes, packages are missing, or nothing can draw here.
        StepRefused: the environment cannot be filmed, or the file cannot be written; its own words are on stderr.
        StepFailed: filming failed; its own words are on stderr.
    """
    require_between("--episodes (of the evaluator's)", episodes, 1, evaluator.episodes)
    check_packages()
    renderer = choose_renderer()
    policy, recorded = chosen
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "filmed.policy"
        path.write_bytes(wire.encode_policy_weights(policy))
        printed = run_module("actors.filming", "--env", run.env, "--policy", path, "--episodes", episodes,
                             "--first-seed", evaluator.seed, "--max-episode-steps", run.environment.max_episode_steps,
                             "--output", output.resolve(), environment={RENDERER_VARIABLE: renderer})  # fmt: skip
    return Footage(output, policy.version, json.loads(printed.splitlines()[-1])["episodes"], recorded)


def _rendering_with(renderer: str) -> dict[str, str]:
    return {**os.environ, RENDERER_VARIABLE: renderer}
