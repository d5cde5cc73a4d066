"""`launcher video`: the film shows the evaluator's own episodes; what can be filmed; what is missing is said."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import numpy as np
import pytest

from actors.config import EvaluatorConfig
from actors.environment import make_environment
from actors.evaluation import run_episode
from actors.policy import NumpyPolicy
from launcher import cli
from launcher.experiment import ExperimentConfig
from launcher.kept_policies import pick_policy
from launcher.video import RENDERER_VARIABLE, choose_renderer
from replay_service.config import EnvironmentConfig, RunConfig
from replay_service.errors import ConfigError
from replay_service.keys import Keys
from replay_service.policy_weights import PolicySpec, PolicyWeights
from replay_service.redis_client import RedisClient
from replay_service.reports import Evaluation, Reports
from replay_service.run_state import RunStateStore
from replay_service.weights_channel import WeightsChannel
from tests.launcher.made_run import made_run

STEPS = 12
PEN = RunConfig(
    env="pen",
    run_id="filmed",
    preset="published",
    dataset=("none",),
    environment=EnvironmentConfig(max_episode_steps=STEPS, observation_dim=45, action_dim=24),
)


def make_policy(version: int) -> PolicyWeights:
    draw = np.random.default_rng(version)
    spec = PolicySpec(45, 24, (8,))
    return PolicyWeights(
        spec=spec,
        version=version,
        grad_steps=version,
        env_steps=0,
        published_unix_seconds=1.5,
        weights=tuple(draw.standard_normal(shape).astype(np.float32) * np.float32(0.1) for shape in spec.layer_shapes),
        biases=tuple(np.zeros(rows, dtype=np.float32) for rows, _columns in spec.layer_shapes),
        log_std=np.zeros(24, dtype=np.float32),
    )


def judged(version: int) -> Evaluation:
    return Evaluation(version, 0, 1, 0.5, 0.25, 0.1, -10.0, STEPS, 2, 1.0, 1.0)


def fill(client: RedisClient, run: RunConfig) -> None:
    """Versions 1, 4 and 9; 1 and 4 were for evaluation, and were judged."""
    keys = Keys(run.run_id)
    RunStateStore(client, keys).initialise(run)
    channel = WeightsChannel(client, keys)
    for version in (1, 4, 9):
        policy = make_policy(version)
        channel.publish(policy, evaluated=None if version == 9 else policy)
    for version in (1, 4):
        Reports(client, keys).add_evaluation(judged(version), request_id=f"{version}-0")


def test_the_newest_version_that_was_judged_is_taken(redis_client: RedisClient, keys: Keys) -> None:
    fill(redis_client, RunConfig(**{**vars(PEN), "run_id": keys.run_id}))
    policy, recorded = pick_policy(redis_client, keys, None)
    assert (policy.version, recorded) == (4, judged(4))
    policy, recorded = pick_policy(redis_client, keys, 9)
    assert (policy.version, recorded) == (9, None)
    with pytest.raises(ConfigError, match=r"keeps the versions 1, 4, 9 .* got 2"):
        pick_policy(redis_client, keys, 2)


def test_a_run_without_a_policy_is_told_so(redis_client: RedisClient, keys: Keys) -> None:
    with pytest.raises(ConfigError, match="no policy yet"):
        pick_policy(redis_client, keys, None)


# imageio's reader leaves the pipes of ffmpeg to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_film_shows_the_evaluators_episodes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    imageio = pytest.importorskip("imageio", reason="needs the extra video")
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")
    try:
        choose_renderer()
    except ConfigError as error:
        pytest.skip(str(error))
    evaluator = EvaluatorConfig(episodes=2, seed=77)
    with made_run(tmp_path / "run", ExperimentConfig(run=PEN, evaluator=evaluator)) as (_directory, client):
        fill(client, PEN)
    assert cli.main(["video", str(tmp_path / "run"), "--episodes", "2"]) == 0
    printed = re.findall(r"episode \d: (\d+) steps, return (\S+), goal (.*), (.*) at the last", capfd.readouterr().out)

    environment = make_environment("pen", max_episode_steps=STEPS)
    policy = NumpyPolicy(make_policy(4))
    expected = []
    for seed in (77, 78):
        score = run_episode(environment, policy, seed)
        met = f"met at {score.success_steps} steps" if score.success_steps else "never met"
        final = "met" if score.success_final else "not met"
        expected.append((str(score.length), f"{score.episode_return:.1f}", met, final))
    environment.close()
    assert printed == expected

    path = tmp_path / "run" / "videos" / "version-4.mp4"
    with imageio.get_reader(path, format="FFMPEG") as film:
        assert film.get_meta_data()["fps"] == 50  # the simulation takes 100 steps a second
        pictures = [np.asarray(picture) for picture in film]
    del film
    gc.collect()  # here, where its warnings are expected, and not in another test
    # The start, every second step, and the last picture held for 0.6 s, in each episode.
    assert len(pictures) == 2 * (1 + STEPS // 2 + 30)
    assert pictures[0].shape == (480 + 44, 480, 3)
    assert pictures[0][:480].std() > 10  # something is drawn
    assert pictures[0][480:].max() > 200  # the text


def test_a_renderer_that_does_not_work_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RENDERER_VARIABLE, "no-such-renderer")
    with pytest.raises(ConfigError, match=r"no-such-renderer: .*apt-get install libosmesa6.*unset MUJOCO_GL"):
        choose_renderer()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "film.gif"], "--output: expected a file that ends in .mp4"),
        (["--episodes", "3"], "--episodes (of the evaluator's): expected a number from 1 to 2, got 3"),
        (["--version", "2"], "keeps the versions 1, 4, 9"),
    ],
)
def test_a_mistake_gets_one_message_and_no_film(
    options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = ExperimentConfig(run=PEN, evaluator=EvaluatorConfig(episodes=2))
    with made_run(tmp_path / "run", config) as (_directory, client):
        fill(client, PEN)
    assert cli.main(["video", str(tmp_path / "run"), *options]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run" / "videos").exists()


def test_a_film_takes_the_place_of_no_pipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    with made_run(tmp_path / "run", ExperimentConfig(run=PEN)) as (_directory, client):
        fill(client, PEN)
    assert cli.main(["video", str(tmp_path / "run"), "--output", str(pipe)]) == 2
    assert f"{pipe}: cannot be written: expected the name of a file" in capfd.readouterr().err
    assert pipe.is_fifo()
