"""`launcher eval`: another policy's worth, on starts that a run's own evaluations do not have."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from actors.environment import make_environment
from actors.evaluation import evaluate
from actors.policy import NumpyPolicy
from launcher import cli
from launcher.evaluation import Judgement
from launcher.experiment import ExperimentConfig
from replay_service.config import EnvironmentConfig, RunConfig
from replay_service.keys import Keys
from replay_service.policy_weights import PolicySpec, PolicyWeights
from replay_service.reports import Evaluation, Reports
from replay_service.run_state import RunStateStore
from replay_service.weights_channel import WeightsChannel
from tests.launcher.made_run import made_run
from tests.policies import policy_weights

STEPS = 12
PENDULUM = RunConfig(
    env="Pendulum-v1",
    run_id="judged",
    preset="published",
    dataset=("none",),
    environment=EnvironmentConfig(
        max_episode_steps=STEPS, observation_dim=3, action_dim=1, action_low=(-2.0,), action_high=(2.0,)
    ),
)


def version(number: int) -> PolicyWeights:
    return policy_weights(PolicySpec(3, 1, (8,)), seed=number, version=number, env_steps=1_000 * number)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run with two versions, the first of them judged."""
    with made_run(tmp_path / "run", ExperimentConfig(run=PENDULUM)) as (_directory, client):
        keys = Keys(PENDULUM.run_id)
        RunStateStore(client, keys).initialise(PENDULUM)
        channel = WeightsChannel(client, keys)
        channel.publish(version(4), evaluated=version(4))
        channel.publish(version(9), evaluated=None)
        judged = Evaluation(4, 4_000, 40, 0.5, 0.25, 0.1, -10.0, STEPS, 2, 1.0, 1.0)
        Reports(client, keys).add_evaluation(judged, request_id="4-0")
    return tmp_path / "run"


def played(policy: PolicyWeights, *, episodes: int, first_seed: int) -> dict[str, float | None]:
    environment = make_environment("Pendulum-v1", max_episode_steps=STEPS)
    score = evaluate(environment, NumpyPolicy(policy), episodes=episodes, first_seed=first_seed)
    environment.close()
    assert score is not None
    return asdict(score)


def test_a_version_is_judged_on_the_starts_that_are_named(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(stopped), "--version", "9", "--episodes", "3", "--first-seed", "70", "--json"]
    assert cli.main(words) == 0
    found = json.loads(capfd.readouterr().out)
    expected = played(version(9), episodes=3, first_seed=70)
    assert found == {
        "env": "Pendulum-v1", "policy_version": 9, "env_steps": 9_000, "grad_steps": 90, "episodes": 3,
        "first_seed": 70, **expected, "standard_error": None,
    }  # fmt: skip
    others = [played(version(4), episodes=3, first_seed=70), played(version(9), episodes=3, first_seed=71)]
    assert all(expected["episode_return"] != other["episode_return"] for other in others)


def test_it_is_said_beside_what_the_evaluator_found(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(stopped), "--episodes", "2"]) == 0
    expected = played(version(4), episodes=2, first_seed=2_000_000)
    assert capfd.readouterr().out.splitlines() == [
        "Pendulum-v1, policy version 4, 4,000 env steps; mean action, 2 episodes from the starts of seeds 2000000 to "
        "2000001",
        f"return {expected['episode_return']:.1f}, length {STEPS} steps",
        "the evaluator found, over its 2 episodes: success 25 % at the last step, 50 % at any",
    ]


def test_success_has_its_standard_error() -> None:
    score: dict[str, float | None] = {"success_any": 0.9, "success_final": 0.8, "success_fraction": 0.5,
                                      "episode_return": -100.0, "episode_length": 200.0}  # fmt: skip
    found = Judgement("pen", version(4), 100, 7, score, None)
    assert found.standard_error == pytest.approx(0.04)  # the root of 0.8 * 0.2 / 100
    assert found.lines()[1:] == [
        "success at the last step 80 % (standard error 4.0 points), at any step 90 %, at 50 % of all steps",
        "return -100.0, length 200 steps",
    ]


@pytest.mark.parametrize(("words", "said"), [
    (("--episodes", "0"), "--episodes: expected at least 1, got 0"),
    (("--first-seed", "-1"), "--first-seed: expected at least 0, got -1"),
    (("--version", "2"), "keeps the versions 4, 9"),
])  # fmt: skip
def test_what_cannot_be_judged_is_refused(
    stopped: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert cli.main(["eval", str(stopped), *words]) == 2
    assert said in " ".join(capfd.readouterr().err.split())
