"""Play a policy file: judge it, or record its episodes as a dataset.

python -m actors.recording evaluate --env pen --policy pen.policy
python -m actors.recording record --env pen --policy pen.policy --episodes 25 --noise-std 0.3 --output pen.npz
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # the matrices are small; before NumPy is loaded

import argparse
import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from actors.environment import Environment, make_environment
from actors.evaluation import evaluate
from actors.policy import NumpyPolicy
from replay_service import wire
from replay_service.config import require_at_least, require_between
from replay_service.datasets import Episode, write_npz
from replay_service.errors import ConfigError, DatasetError, WireError
from replay_service.process import configure_logging, run_role

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ActionNoise:
    """Gaussian noise on the mean action, correlated over time: n_t = c n_{t-1} + sqrt(1 - c^2) std e_t.

    Uncorrelated noise averages out for a learner that clones the record; correlated noise, like a demonstrator's
    wobble, does not.
    """

    std: float
    """Standard deviation at every step."""
    correlation: float = 0.0
    """c, in [0, 1): correlation of one step's noise with the next one's."""


def record_episode(
    environment: Environment, policy: NumpyPolicy, generator: np.random.Generator, noise: ActionNoise
) -> Episode:
    """Play one episode with noise on the mean action; the record holds the actions as clipped to [-1, 1]."""
    observations = [environment.reset(seed=int(generator.integers(2**31)))]
    actions, rewards = [], []
    fresh_share = np.float32(noise.std * np.sqrt(1.0 - noise.correlation**2))
    offset = np.float32(noise.std) * generator.standard_normal(environment.spec.action_dim, dtype=np.float32)
    while True:
        action = np.clip(policy.mean(observations[-1]) + offset, -1.0, 1.0)
        fresh = generator.standard_normal(environment.spec.action_dim, dtype=np.float32)
        offset = np.float32(noise.correlation) * offset + fresh_share * fresh
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
    environment: Environment, policy: NumpyPolicy, *, episodes: int, noise: ActionNoise, seed: int, longest_search: int
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
        episode = record_episode(environment, policy, generator, noise)
        if episode.rewards[-1] >= 0.0:
            kept.append(episode)
        if len(kept) == episodes:
            return kept, played
    raise DatasetError(f"expected {episodes} successful episodes, got {len(kept)} of {longest_search} played")


def _load_policy(path: Path) -> NumpyPolicy:
    try:
        return NumpyPolicy(wire.decode_policy_weights(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"cannot read the policy file {path}: {error.strerror}") from error
    except WireError as error:
        raise ConfigError(f"{path} is not a policy file: {error}") from error


def main() -> int:
    """Evaluate a policy file, or record a dataset with it."""
    parser = argparse.ArgumentParser(prog="python -m actors.recording")
    parser.add_argument("verb", choices=("evaluate", "record"))
    parser.add_argument("--env", required=True)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=25)
    parser.add_argument("--noise-std", type=float, default=0.0, help="standard deviation added to the mean action")
    parser.add_argument("--noise-correlation", type=float, default=0.0, help="of one step's noise with the next one's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--provenance", default="{}", help="JSON object that is stored in the dataset")
    parser.add_argument("--output", type=Path, help="dataset to write (.npz)")
    arguments = parser.parse_args()
    configure_logging("recording")
    require_at_least("--episodes", arguments.episodes, 1)
    require_at_least("--noise-std", arguments.noise_std, 0.0)
    require_between("--noise-correlation", arguments.noise_correlation, 0.0, 1.0)
    environment = make_environment(arguments.env)
    policy = _load_policy(arguments.policy)
    if arguments.verb == "evaluate":
        score = evaluate(environment, policy, episodes=arguments.episodes, first_seed=arguments.seed)
        print(json.dumps(asdict(score) if score else None))
        return 0
    if arguments.output is None:
        raise ConfigError("record: expected --output FILE.npz, got none")
    kept, played = record(
        environment,
        policy,
        episodes=arguments.episodes,
        noise=ActionNoise(arguments.noise_std, arguments.noise_correlation),
        seed=arguments.seed,
        longest_search=20 * arguments.episodes,
    )
    provenance = {k: str(v) for k, v in json.loads(arguments.provenance).items()}
    facts = {
        "env": arguments.env,
        "episodes_played": str(played),
        "noise_std": repr(arguments.noise_std),
        "noise_correlation": repr(arguments.noise_correlation),
        "seed": str(arguments.seed),
        "kept": "episodes that meet the goal at their last step",
    }
    write_npz(arguments.output, kept, {**provenance, **facts})
    print(json.dumps({"episodes": len(kept), "played": played, "output": str(arguments.output)}))
    return 0


if __name__ == "__main__":
    sys.exit(run_role(main))
