"""Run the replay service: `python -m replay_service --config run.toml --run-dir DIR`.

It starts an embedded Redis, or uses the one named by AWAC_REDIS_URL, or by `redis_url` in the file. The password is in
AWAC_REDIS_PASSWORD, or in the file that AWAC_REDIS_PASSWORD_FILE names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from replay_service.config_file import load_run_config
from replay_service.process import StopSignal, configure_logging, die_with_launcher, run_role
from replay_service.redis_server import LOOPBACK
from replay_service.service import ReplayService


def main() -> int:
    """Run the service until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m replay_service")
    parser.add_argument("--config", type=Path, required=True, help="the run's TOML file")
    parser.add_argument("--run-dir", type=Path, required=True, help="where data and records are kept")
    parser.add_argument("--listen", default=LOOPBACK, help="this machine's address for the embedded Redis")
    arguments = parser.parse_args()
    configure_logging("replay")
    die_with_launcher()
    stop = StopSignal()
    stop.install()

    def work() -> int:
        ReplayService(load_run_config(arguments.config), arguments.run_dir, stop=stop, listen=arguments.listen).run()
        return 0

    return run_role(work)


if __name__ == "__main__":
    sys.exit(main())
