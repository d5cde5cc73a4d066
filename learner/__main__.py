"""Run the learner: `python -m learner --config run.toml --checkpoint-dir DIR`.

The run's Redis comes from the environment variables AWAC_REDIS_URL and AWAC_REDIS_PASSWORD; AWAC_REDIS_PASSWORD_FILE
names a file with the password instead.
"""

from __future__ import annotations

import os

# Waiting OpenMP threads must not spin: beside busy actors a spinning learner gets many times slower. Before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import logging
import sys
from pathlib import Path

import torch

from learner.config import LearnerConfig
from learner.learner import Learner
from learner.session import Session
from replay_service.config_file import load_role_config, load_run_config
from replay_service.connection import RedisEndpoint
from replay_service.errors import ConfigError
from replay_service.process import StopSignal, configure_logging, die_with_launcher, run_role

_STOPPED_EXIT_CODE = 143
"""128 + SIGTERM."""

_log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """'auto' takes a CUDA GPU when there is one.

    Raises:
        ConfigError: the name is unknown, or the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.version.cuda is not None:
            _log.warning("this torch was built for CUDA, but the driver shows no GPU: the CPU is taken")
        return torch.device("cpu")
    expected = f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(expected) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(expected)
    if device.type == "cuda" and not torch.cuda.is_available():
        built = "this torch was built without CUDA" if torch.version.cuda is None else "the driver shows no GPU"
        raise ConfigError(f"--device {name}: {built}; use --device cpu, or install a CUDA build of torch")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: expected at most cuda:{torch.cuda.device_count() - 1}, the driver shows no more GPUs"
        )
    return device


def main() -> int:
    """Run the learner until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m learner")
    parser.add_argument("--config", type=Path, required=True, help="the run's TOML file")
    parser.add_argument("--checkpoint-dir", type=Path, required=True)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--exit-when-finished",
        action="store_true",
        help="as a batch job should: end with code 0 once the budget is done and judged, and with 143 when stopped "
        "before that; default: wait for SIGTERM, and end with code 0",
    )
    arguments = parser.parse_args()
    configure_logging("learner")
    die_with_launcher()
    stop = StopSignal()
    stop.install()

    def work() -> int:
        device = choose_device(arguments.device)
        _log.info("learns on %s", device)
        session = Session.open(
            load_run_config(arguments.config),
            load_role_config(arguments.config, "learner", LearnerConfig),
            RedisEndpoint.from_environment(),
            checkpoint_dir=arguments.checkpoint_dir,
            device=device,
            stop=stop,
        )
        is_done = Learner(session, exit_when_finished=arguments.exit_when_finished).run()
        # A scheduler that takes the machine away must not take the job for done.
        return _STOPPED_EXIT_CODE if arguments.exit_when_finished and not is_done else 0

    return run_role(work)


if __name__ == "__main__":
    sys.exit(main())
