"""How good is a run's policy on starts that nobody has played? The evaluator's 50 starts are those of every curve.

    python -m benchmarks.other_starts RUN... --episodes 200

Of each run's newest checkpoint: what the evaluator gets and what the actors get, by the mean action, on the same
seeded starts for all. A line of JSON each, with the standard error of the success at the last step. The runs must have
stopped: a checkpoint that is being replaced cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from actors.environment import make_environment
from actors.evaluation import Score, evaluate
from actors.policy import NumpyPolicy
from benchmarks.critic_judgement import FIRST_SEED, restore
from launcher.wording import percent
from learner.networks import GaussianPolicy, PublicationStamp, export_policy
from learner.update import acting_policy, evaluated_policy
from replay_service.config import RunConfig
from replay_service.errors import USER_ERROR_EXIT_CODE, UserError


def judge(run: RunConfig, policy: GaussianPolicy, *, episodes: int) -> Score:
    """Play a policy's mean action on the first so many of the other starts."""
    environment = make_environment(run.env, max_episode_steps=run.environment.max_episode_steps)
    exported = NumpyPolicy(export_policy(policy, PublicationStamp(1, 0, 0, 0.0)))
    score = evaluate(environment, exported, episodes=episodes, first_seed=FIRST_SEED, should_stop=lambda: False)
    environment.close()
    assert score is not None, "nobody asks it to stop"
    return score


def standard_error(share: float | None, episodes: int) -> float | None:
    """Of a share of independent episodes."""
    return None if share is None else round((share * (1.0 - share) / episodes) ** 0.5, 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories of runs that have stopped")
    parser.add_argument("--episodes", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.episodes < 1:
        parser.error(f"--episodes: expected at least 1, got {arguments.episodes}")
    try:
        restored = [(path, *restore(path)) for path in arguments.runs]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    for path, run, _config, state in restored:
        for who, policy in (("evaluator", evaluated_policy(state)), ("actors", acting_policy(state))):
            score = judge(run, policy, episodes=arguments.episodes)
            line = {
                "run": path.name, "env": run.env, "seed": run.seed, "grad_steps": state.grad_steps, "policy_of": who,
                "episodes": arguments.episodes, **asdict(score),
                "standard_error": standard_error(score.success_final, arguments.episodes),
            }  # fmt: skip
            print(json.dumps(line), flush=True)
            print(f"{path.name}, policy of the {who}: {percent(score.success_final)} at the last step", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
