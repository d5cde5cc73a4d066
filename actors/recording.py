"""Play policy files: judge one, or record episodes as a dataset.

python -m actors.recording evaluate --env pen --policy pen.policy
python -m actors.recording record --env pen --policy pen.policy --episodes 25 --noise-std 0.3 --output pen.npz
python -m actors.recording rollout --env pen --policy 0.policy --policy 1.policy --episodes 500 --output pen-bc-v0
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # the matrices are small; before NumPy is loaded

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from actors.environment import Environment, make_environment
from actors.evaluation import evaluate
from actors.policy import NumpyPolicy
from replay_service import wire
from replay_service.config import require_at_least, require_below_one
from replay_service.datasets import DatasetCard, Episode, check_minari_name, write_minari, write_npz
from replay_service.errors import ConfigError, DatasetError, WireError
from replay_service.experience import FloatArray
from replay_service.process import configure_logging, die_with_launcher, run_role

_PROGRESS_EVERY_EPISODES = 50

Behaviour = Callable[[FloatArray], FloatArray]
"""Observation (O,) -> action (A,), which may leave [-1, 1]."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Handicap:
    """What keeps a demonstrator from playing its policy's mean m_t: a hand that lags behind, and wobbles.

    a_t = l_t + n_t with l_t = lag l_{t-1} + (1 - lag) m_t and n_t = c n_{t-1} + sqrt(1 - c^2) std e_t, e_t normal.
    Uncorrelated noise averages out for a learner that clones the record; correlated noise and lag do not.
    """

    noise_std: float = 0.0
    """Standard deviation of n at every step."""
    noise_correlation: float = 0.0
    """c, in [0, 1): correlation of one step's noise with the next one's."""
    lag: float = 0.0
    """In [0, 1): how much of the last l is in this one. Actions are positions to go to, so it slows the hand."""


def handicapped(policy: NumpyPolicy, action_dim: int, generator: np.random.Generator, handicap: Handicap) -> Behaviour:
    """The mean action under a handicap, for one episode."""
    correlation, lag = np.float32(handicap.noise_correlation), np.float32(handicap.lag)
    fresh_share = np.float32(handicap.noise_std * np.sqrt(1.0 - handicap.noise_correlation**2))
    noise = np.float32(handicap.noise_std) * generator.standard_normal(action_dim, dtype=np.float32)
    lagging: FloatArray | None = None

    def behave(observation: FloatArray) -> FloatArray:
        nonlocal noise, lagging
        mean = policy.mean(observation)
        lagging = mean if lagging is None else lag * lagging + (1 - lag) * mean
        action: FloatArray = lagging + noise
        noise = correlation * noise + fresh_share * generator.standard_normal(action_dim, dtype=np.float32)
        return action

    return behave


def sampled(policy: NumpyPolicy, action_dim: int, generator: np.random.Generator) -> Behaviour:
    """Samples of the policy, as an actor explores."""
    return lambda observation: policy.act(observation, generator.standard_normal(action_dim, dtype=np.float32))


def record_episode(environment: Environment, behaviour: Behaviour, seed: int) -> Episode:
    """Play one episode from a seeded start; the record holds the actions as clipped to [-1, 1]."""
    observations = [environment.reset(seed=seed)]
    actions, rewards = [], []
    while True:
        action = np.clip(behaviour(observations[-1]), -1.0, 1.0)
        step = environment.step(action)
        observations.append(step.observation)
        actions.append(action)
        rewards.append(step.reward)
        if step.terminated or step.truncated:
            return Episode(
                observations=np.stack(observations),
                actions=np.stack(actions),
                rewards=np.asarray(rewards, dtype=np.float32),
                terminated=step.terminated,
                truncated=step.truncated,
            )


def record(
    environment: Environment, policy: NumpyPolicy, *, episodes: int, handicap: Handicap, seed: int, longest_search: int
) -> tuple[list[Episode], int]:
    """Record episodes that meet the goal at their last step, as a demonstrator would keep them.

    Returns:
        The episodes, and how many were played to find them.

    Raises:
        DatasetError: `longest_search` episodes held too few successes.
    """
    generator = np.random.default_rng(seed)
    kept: list[Episode] = []
    for played in range(1, longest_search + 1):
        seed_of_episode = int(generator.integers(2**31))
        behaviour = handicapped(policy, environment.spec.action_dim, generator, handicap)
        episode = record_episode(environment, behaviour, seed_of_episode)
        if episode.rewards[-1] >= 0.0:
            kept.append(episode)
        if len(kept) == episodes:
            return kept, played
    raise DatasetError(f"expected {episodes} successful episodes, got {len(kept)} of {longest_search} played")


def roll_out(
    environment: Environment, policies: Sequence[NumpyPolicy], *, episodes: int, seed: int
) -> Iterator[Episode]:
    """Play the policies in turn, every second round with the mean action, else with samples; keep every episode.

    Args:
        environment: where.
        policies: K of them; policy i plays the episodes i, i + K, i + 2K, ...
        episodes: in all.
        seed: of starts and samples.
    """
    generator = np.random.default_rng(seed)
    for index in range(episodes):
        policy = policies[index % len(policies)]
        samples = (index // len(policies)) % 2 == 0
        behaviour = sampled(policy, environment.spec.action_dim, generator) if samples else policy.mean
        yield record_episode(environment, behaviour, int(generator.integers(2**31)))
        if (index + 1) % _PROGRESS_EVERY_EPISODES == 0 or index + 1 == episodes:
            _log.info("episode %d of %d", index + 1, episodes)


def load_policy(path: Path) -> NumpyPolicy:
    """Read a policy file.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        return NumpyPolicy(wire.decode_policy_weights(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"cannot read the policy file {path}: {error.strerror}") from error
    except WireError as error:
        raise ConfigError(f"{path} is not a policy file: {error}") from error


def main() -> int:
    """Evaluate a policy file, or record a dataset with it."""
    parser = argparse.ArgumentParser(prog="python -m actors.recording")
    parser.add_argument("verb", choices=("evaluate", "record", "rollout"))
    parser.add_argument("--env", required=True)
    parser.add_argument("--policy", type=Path, required=True, action="append", help="rollout: may be given repeatedly")
    parser.add_argument("--episodes", type=int, default=25)
    parser.add_argument("--noise-std", type=float, default=0.0, help="record: standard deviation added to the mean")
    parser.add_argument(
        "--noise-correlation", type=float, default=0.0, help="record: of one step's noise with the next's"
    )
    parser.add_argument("--lag", type=float, default=0.0, help="record: how much of the last action is in the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-episode-steps", type=int, default=0, help="0: the environment's own")
    parser.add_argument("--provenance", default="{}", help="JSON object that is stored in the dataset")
    parser.add_argument("--output", type=Path, help="dataset to write: record a .npz, rollout a Minari directory")
    arguments = parser.parse_args()
    die_with_launcher()
    configure_logging("recording")
    require_at_least("--episodes", arguments.episodes, 1)
    require_at_least("--noise-std", arguments.noise_std, 0.0)
    require_below_one("--noise-correlation", arguments.noise_correlation)
    require_below_one("--lag", arguments.lag)
    require_at_least("--seed", arguments.seed, 0)
    if arguments.verb != "rollout" and len(arguments.policy) > 1:
        raise ConfigError(f"{arguments.verb}: expected one --policy, got {len(arguments.policy)}")
    if arguments.verb != "evaluate" and arguments.output is None:
        raise ConfigError(f"{arguments.verb}: expected --output, got none")
    environment = make_environment(arguments.env, max_episode_steps=arguments.max_episode_steps)
    policies = [load_policy(path) for path in arguments.policy]
    if arguments.verb == "evaluate":
        score = evaluate(environment, policies[0], episodes=arguments.episodes, first_seed=arguments.seed)
        result: object = asdict(score) if score else None
    elif arguments.verb == "record":
        result = _record_to_npz(environment, policies[0], arguments)
    else:
        result = _roll_out_to_minari(environment, policies, arguments)
    print(json.dumps(result))
    return 0


def _record_to_npz(environment: Environment, policy: NumpyPolicy, arguments: argparse.Namespace) -> dict[str, object]:
    kept, played = record(
        environment,
        policy,
        episodes=arguments.episodes,
        handicap=Handicap(arguments.noise_std, arguments.noise_correlation, arguments.lag),
        seed=arguments.seed,
        longest_search=20 * arguments.episodes,
    )
    provenance = {k: str(v) for k, v in json.loads(arguments.provenance).items()}
    facts = {
        "env": arguments.env,
        "episodes_played": str(played),
        "noise_std": repr(arguments.noise_std),
        "noise_correlation": repr(arguments.noise_correlation),
        "lag": repr(arguments.lag),
        "seed": str(arguments.seed),
        "kept": "episodes that meet the goal at their last step",
    }
    write_npz(arguments.output, kept, {**provenance, **facts})
    return {"episodes": len(kept), "played": played, "output": str(arguments.output)}


def _roll_out_to_minari(
    environment: Environment, policies: list[NumpyPolicy], arguments: argparse.Namespace
) -> dict[str, object]:
    check_minari_name(arguments.output)
    card = DatasetCard(
        observation_dim=environment.spec.observation_dim,
        action_dim=environment.spec.action_dim,
        env_spec=environment.env.spec.to_json(),
        algorithm="behaviour cloning",
        description=f"Rollouts of {len(policies)} behaviour-cloned policies in {arguments.env}, half of the episodes "
        "with sampled actions, half with the mean action; no episode is left out.",
        provenance={**json.loads(arguments.provenance), "env": arguments.env, "seed": arguments.seed},
    )
    succeeded = 0

    def counted() -> Iterator[Episode]:
        nonlocal succeeded
        for episode in roll_out(environment, policies, episodes=arguments.episodes, seed=arguments.seed):
            succeeded += bool((episode.rewards >= 0.0).any())
            yield episode

    episodes, steps = write_minari(arguments.output, counted(), card)
    return {"episodes": episodes, "steps": steps, "success_any": succeeded / episodes, "output": str(arguments.output)}


if __name__ == "__main__":
    sys.exit(run_role(main))
