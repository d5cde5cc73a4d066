"""Recorded episodes are what the policy does in the environment, and the dataset says how they were made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from actors.environment import make_environment
from actors.policy import NumpyPolicy
from actors.recording import Handicap, handicapped, record_episode, roll_out
from replay_service import wire
from replay_service.datasets import load_dataset
from replay_service.policy_weights import PolicySpec
from tests.policies import policy_weights


def policy_file(path: Path, *, seed: int, observation_dim: int = 45, action_dim: int = 24) -> Path:
    spec = PolicySpec(observation_dim, action_dim, hidden_sizes=(8,))
    path.write_bytes(wire.encode_policy_weights(policy_weights(spec, seed=seed, scale=0.1, log_std=-1.0)))
    return path


def load(path: Path) -> NumpyPolicy:
    return NumpyPolicy(wire.decode_policy_weights(path.read_bytes()))


def test_rollouts_take_turns_of_policies_and_every_second_round_is_without_noise(tmp_path: Path) -> None:
    environment = make_environment("pen", max_episode_steps=5)
    policies = [load(policy_file(tmp_path / f"{seed}", seed=seed)) for seed in range(2)]
    episodes = list(roll_out(environment, policies, episodes=6, seed=4))
    deviations = [
        np.abs(episode.actions - np.clip(policies[index % 2].mean(episode.observations[:-1]), -1, 1)).max()
        for index, episode in enumerate(episodes)
    ]
    assert [bool(d < 1e-5) for d in deviations] == [False, False, True, True, False, False]
    again = list(roll_out(environment, policies, episodes=6, seed=4))
    for one, same in zip(episodes, again, strict=True):
        assert np.array_equal(one.observations, same.observations)
    starts = {episode.observations[0].tobytes() for episode in episodes}
    assert len(starts) == 6
    environment.close()


def test_noise_has_its_spread_and_its_correlation(tmp_path: Path) -> None:
    policy = load(policy_file(tmp_path / "p", seed=0))
    generator = np.random.default_rng(0)
    observation = np.zeros(45, dtype=np.float32)
    behave = handicapped(policy, 24, generator, Handicap(noise_std=0.3, noise_correlation=0.9))
    noise = np.stack([behave(observation) for _ in range(4000)]) - policy.mean(observation)
    assert noise.std() == pytest.approx(0.3, rel=0.05)
    following = (noise[1:] * noise[:-1]).mean() / (noise**2).mean()
    assert following == pytest.approx(0.9, abs=0.02)


def test_a_lagging_hand_follows_the_mean_by_its_share(tmp_path: Path) -> None:
    policy = load(policy_file(tmp_path / "p", seed=0))
    generator = np.random.default_rng(0)
    observations = generator.standard_normal((5, 45), dtype=np.float32)
    behave = handicapped(policy, 24, generator, Handicap(lag=0.75))
    expected = policy.mean(observations[0])
    assert np.allclose(behave(observations[0]), expected)
    for observation in observations[1:]:
        expected = 0.75 * expected + 0.25 * policy.mean(observation)
        assert np.allclose(behave(observation), expected, atol=1e-6)
        assert not np.allclose(expected, policy.mean(observation), atol=1e-3)


def test_an_episode_is_replayed_to_the_same_observations(tmp_path: Path) -> None:
    environment = make_environment("pen", max_episode_steps=6)
    policy = load(policy_file(tmp_path / "p", seed=1))
    episode = record_episode(environment, policy.mean, seed=11)
    observations = [environment.reset(seed=11)]
    observations += [environment.step(action).observation for action in episode.actions]
    assert np.array_equal(np.stack(observations), episode.observations)
    assert len(episode.rewards) == 6
    assert episode.truncated
    assert not episode.terminated
    environment.close()


def test_the_command_writes_a_dataset_with_its_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [policy_file(tmp_path / f"{seed}.policy", seed=seed) for seed in range(2)]
    words = [word for path in files for word in ("--policy", str(path))]
    done = subprocess.run(
        [sys.executable, "-m", "actors.recording", "rollout", "--env", "pen", *words, "--episodes", "4",
         "--provenance", '{"steps": 7}', "--output", str(tmp_path / "made-v0")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 800
    spec = make_environment("pen").spec
    assert load_dataset([str(tmp_path / "made-v0")], spec=spec).num_episodes == 4
    metadata = json.loads((tmp_path / "made-v0" / "data" / "metadata.json").read_text())
    assert json.loads(metadata["provenance"]) == {"env": "pen", "seed": 0, "steps": 7}
    minari = pytest.importorskip("minari", reason="needs the minari package")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    recovered = minari.load_dataset("made-v0").recover_environment()
    assert recovered.spec.id == "AdroitHandPen-v1"
    recovered.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollout", "--output", "made"], "ends in a version"),
        (["rollout"], "expected --output"),
        (["evaluate", "--policy", "other"], "expected one --policy"),
        (["rollout", "--output", "made-v0", "--episodes", "0"], "--episodes"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    path = policy_file(tmp_path / "p", seed=0)
    done = subprocess.run(
        [sys.executable, "-m", "actors.recording", *words, "--env", "pen", "--policy", str(path)],
        capture_output=True, text=True, cwd=tmp_path, env=_environment(),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
