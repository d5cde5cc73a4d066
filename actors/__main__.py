"""Run actors or the evaluator: `python -m actors actor --config run.toml --indices 0-7`, `python -m actors evaluator`.

The run's Redis comes from the environment variables AWAC_REDIS_URL and AWAC_REDIS_PASSWORD; AWAC_REDIS_PASSWORD_FILE
names a file with the password instead.
"""

from __future__ import annotations

import os

# One BLAS thread a process: the matrices are small and the processes many. Must be set before NumPy is loaded.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import sys
from functools import partial
from pathlib import Path

from actors.actor import Actor
from actors.config import ActorConfig, EvaluatorConfig
from actors.evaluator import Evaluator
from actors.pool import ActorPool
from actors.shared_weights import SharedWeights
from replay_service.actor_ids import claim_actor_id
from replay_service.config import RunConfig
from replay_service.config_file import load_role_config, load_run_config
from replay_service.connection import RedisEndpoint, connect
from replay_service.errors import ConfigError
from replay_service.keys import Keys
from replay_service.patience import Patience
from replay_service.process import (
    RESTARTED_VARIABLE,
    RestartBudget,
    StopSignal,
    configure_logging,
    die_with_launcher,
    die_with_parent,
    run_role,
)

_CLAIM = "claim"


def parse_indices(text: str) -> tuple[int, ...]:
    """Read '3' or '0-7' as actor indices.

    Raises:
        ConfigError: the text is neither.
    """
    first, separator, last = text.partition("-")
    try:
        low = int(first)
        high = int(last) if separator else low
    except ValueError:
        low, high = 0, -1
    if not 0 <= low <= high:
        raise ConfigError(f"--indices: expected an index like 3 or a range like 0-7, got {text!r}")
    return tuple(range(low, high + 1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m actors", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("role", choices=("actor", "evaluator"))
    parser.add_argument("--config", type=Path, required=True, help="the run's TOML file")
    parser.add_argument(
        "--indices",
        default="0",
        help="actors to run on this host: an index, a range like 0-7, or 'claim' for one actor under any free index",
    )
    parser.add_argument("--log-dir", type=Path, help="write one log file an actor here (default: stderr)")
    return parser.parse_args()


def _log_path(log_dir: Path | None, name: str) -> Path | None:
    return None if log_dir is None else log_dir / f"{name}.log"


def _run_pool(arguments: argparse.Namespace) -> int:
    configure_logging("actors")
    run = load_run_config(arguments.config)
    config = load_role_config(arguments.config, "actor", ActorConfig)
    endpoint = RedisEndpoint.from_environment()
    stop = StopSignal()
    stop.install()
    pool_pid = os.getpid()
    shared_weights = SharedWeights()

    def actor_main(actor_id: int, replaces_crashed: bool) -> None:
        die_with_parent(pool_pid)
        child_stop = StopSignal(twice_at_once=False)  # a terminal or systemd tells the group, and then the pool does
        child_stop.install()
        configure_logging(f"actor-{actor_id}", _log_path(arguments.log_dir, f"actor-{actor_id}"))
        actor = Actor(
            run,
            config,
            endpoint,
            actor_id=actor_id,
            stop=child_stop,
            replaces_crashed=replaces_crashed,
            shared_weights=shared_weights,
        )

        def work() -> int:
            actor.run()
            return 0

        sys.exit(run_role(work))

    budget = RestartBudget(limit=config.max_restarts, window_s=config.restart_window_s)
    indices = _claimed(run, endpoint, stop) if arguments.indices == _CLAIM else parse_indices(arguments.indices)
    if not indices:
        return 0
    pool = ActorPool(
        actor_main,
        indices,
        budget=budget,
        stop=stop,
        replaces_crashed=os.environ.get(RESTARTED_VARIABLE) == "1",
    )
    return pool.run()


def _claimed(run: RunConfig, endpoint: RedisEndpoint, stop: StopSignal) -> tuple[int, ...]:
    client, keys = connect(endpoint), Keys(run.run_id)
    claim = partial(claim_actor_id, client, keys, silence_s=run.replay.actor_timeout_s)
    claimed = Patience("actor", stop).until_answered(claim)
    return () if claimed is None else (claimed,)


def _run_evaluator(arguments: argparse.Namespace) -> int:
    configure_logging("evaluator")
    stop = StopSignal()
    stop.install()
    run = load_run_config(arguments.config)
    config = load_role_config(arguments.config, "evaluator", EvaluatorConfig)
    Evaluator(run, config, RedisEndpoint.from_environment(), stop=stop).run()
    return 0


def main() -> int:
    """Run the role named on the command line."""
    arguments = _arguments()
    die_with_launcher()
    return run_role(lambda: _run_pool(arguments) if arguments.role == "actor" else _run_evaluator(arguments))


if __name__ == "__main__":
    sys.exit(main())
