"""Film evaluation episodes of a policy file: an MP4 in real time, with the success flag drawn below the picture.

python -m actors.filming --env pen --policy pen.policy --episodes 3 --first-seed 1000000 --output pen.mp4

MUJOCO_GL names MuJoCo's renderer (`actors.rendering` tells whether it works).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from actors.environment import Environment, Step, make_environment
from actors.evaluation import EpisodeScore, run_episode
from actors.policy import NumpyPolicy
from actors.recording import load_policy
from replay_service.config import require_at_least
from replay_service.errors import ConfigError
from replay_service.process import configure_logging, die_with_launcher, run_role

Frame = npt.NDArray[np.uint8]
"""(height, width, 3), red, green, blue."""

_MOST_FRAMES_A_SECOND = 50.0
"""A simulation with more steps a second is filmed at every second or third step, still in real time."""
_USUAL_STEPS_A_SECOND = 30.0
_HOLD_S = 0.6
"""The last picture of an episode stays for this long."""
_STRIP_HEIGHT = 44
_TEXT_SIZE = 15
_MET, _NOT_MET, _UNKNOWN = (0, 110, 60), (60, 60, 60), (60, 60, 60)


class FrameSink(Protocol):
    """Takes pictures, one after the other."""

    def append_data(self, frame: Frame) -> None:
        """Add a picture."""


class Film:
    """Draws an environment as it is played, at a rate that shows it in real time."""

    def __init__(self, environment: Environment, sink: FrameSink, *, stride: int, hold_frames: int) -> None:
        self._environment = environment
        self._sink = sink
        self._stride = stride
        self._hold_frames = hold_frames
        self._title = ""
        self._steps = self._success_steps = 0
        self._return = 0.0
        self.frames = 0

    def begin(self, title: str) -> None:
        """An episode begins; the title stands in all of its pictures."""
        self._title = title
        self._steps = self._success_steps = 0
        self._return = 0.0

    def watch(self, step: Step | None) -> None:
        """Look at the environment after its reset (None) or after a step."""
        success = None
        if step is not None:
            self._steps += 1
            self._return += step.reward
            success = step.success
            self._success_steps += bool(success)
        is_last = step is not None and (step.terminated or step.truncated)
        if self._steps % self._stride and not is_last:
            return
        frame = with_strip(self._environment.render(), self._lines(success), success)
        for _repeat in range(1 + self._hold_frames * is_last):
            self._sink.append_data(frame)
            self.frames += 1

    def _lines(self, success: bool | None) -> tuple[str, str]:
        state = f"step {self._steps} of {self._environment.spec.max_episode_steps}   return {self._return:.0f}"
        if success is None:
            return self._title, state
        return self._title, f"{state}   goal {'MET' if success else 'not met'}, so far at {self._success_steps} steps"


def with_strip(picture: Frame, lines: tuple[str, str], success: bool | None) -> Frame:
    """Put two lines of text below a picture, on green while the goal is met; both sides come out even, for H.264."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[0] + picture.shape[0] % 2, picture.shape[1] + picture.shape[1] % 2
    image = Image.new("RGB", (width, height + _STRIP_HEIGHT), _MET if success else _NOT_MET)
    image.paste(Image.fromarray(picture), (0, 0))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_TEXT_SIZE)
    for row, line in enumerate(lines):
        draw.text((8, height + 3 + row * 20), line, fill=(255, 255, 255), font=font)
    return np.asarray(image, dtype=np.uint8)


def film_episodes(
    environment: Environment, policy: NumpyPolicy, output: Path, *, episodes: int, first_seed: int
) -> tuple[list[EpisodeScore], int]:
    """Play and film the first evaluation episodes.

    Args:
        environment: made with `render_mode="rgb_array"`.
        policy: acts with its mean.
        output: MP4 to write; a reader never sees half of it.
        episodes: how many.
        first_seed: episode i is reset with `first_seed + i`, as the evaluator does.

    Returns:
        A score an episode, the evaluator's, and the number of pictures.

    Raises:
        EnvironmentUnknown: the environment cannot be drawn here.
    """
    import imageio

    steps_a_second = float(environment.env.metadata.get("render_fps") or _USUAL_STEPS_A_SECOND)
    stride = max(1, int(np.ceil(steps_a_second / _MOST_FRAMES_A_SECOND)))
    frames_a_second = steps_a_second / stride
    partial = output.with_name(f".{output.stem}.{os.getpid()}.partial.mp4")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer: Any = imageio.get_writer(
            partial, format="FFMPEG", fps=frames_a_second, codec="libx264", pixelformat="yuv420p", quality=7,
            macro_block_size=1, ffmpeg_log_level="error",
        )  # fmt: skip
        with writer:
            film = Film(environment, writer, stride=stride, hold_frames=int(_HOLD_S * frames_a_second))
            scores = []
            for index in range(episodes):
                film.begin(
                    f"{environment.spec.env}, policy version {policy.version}, episode {index + 1} of {episodes} "
                    f"(seed {first_seed + index})"
                )
                scores.append(run_episode(environment, policy, first_seed + index, film.watch))
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return scores, film.frames


def main() -> int:
    """Film a policy file."""
    parser = argparse.ArgumentParser(prog="python -m actors.filming")
    parser.add_argument("--env", required=True)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--max-episode-steps", type=int, default=0, help="0: the environment's own")
    parser.add_argument("--output", type=Path, required=True, help="MP4 to write")
    arguments = parser.parse_args()
    die_with_launcher()
    configure_logging("filming")
    require_at_least("--episodes", arguments.episodes, 1)
    policy = load_policy(arguments.policy)
    environment = make_environment(
        arguments.env, max_episode_steps=arguments.max_episode_steps, render_mode="rgb_array"
    )
    try:
        scores, frames = film_episodes(
            environment, policy, arguments.output, episodes=arguments.episodes, first_seed=arguments.first_seed
        )
    except OSError as error:
        raise ConfigError(f"{arguments.output}: cannot be written: {error.strerror or error}") from error
    finally:
        environment.close()
    print(json.dumps({"episodes": [asdict(score) for score in scores], "frames": frames}))
    return 0


if __name__ == "__main__":
    sys.exit(run_role(main))
