"""`python -m learner` as a process: signals and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w

from replay_service.config import RunConfig
from replay_service.connection import RedisEndpoint
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.run_state import Phase, RunStateStore
from tests.conftest import PATIENCE_S
from tests.learner.running.driving import (
    EPISODE_STEPS,
    WaitUntil,
    wait_for_phase,
)


class TestProcess:
    def start(
        self, run: RunConfig, endpoint: RedisEndpoint, folder: Path, *options: str, **learner: Any
    ) -> subprocess.Popen[str]:
        tables = {
            "env": run.env,
            "run_id": run.run_id,
            "num_offline_steps": run.num_offline_steps,
            "environment": {"max_episode_steps": EPISODE_STEPS, "observation_dim": 3, "action_dim": 2},
            "learner": {"policy_hidden_sizes": [8], "critic_hidden_sizes": [8], "threads": 1, **learner},
        }
        config = folder / "run.toml"
        config.write_bytes(tomli_w.dumps(tables).encode())
        command = [sys.executable, "-m", "learner", "--config", str(config), "--device", "cpu"]
        return subprocess.Popen(
            [*command, "--checkpoint-dir", str(folder / "checkpoints"), *options],
            env={**os.environ, **endpoint.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def test_ends_on_sigterm_with_code_0_and_a_checkpoint(
        self, seeded_state: RunStateStore, run_config: RunConfig, redis_endpoint: RedisEndpoint, tmp_path: Path,
        wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        process = self.start(run_config, redis_endpoint, tmp_path)
        try:
            wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
        assert process.returncode == 0, output
        manifest = json.loads((tmp_path / "checkpoints/step-000000000030/manifest.json").read_text())
        assert manifest["progress"]["phase"] == "online"

    def test_a_batch_job_that_is_stopped_before_its_end_does_not_end_with_code_0(
        self, seeded_state: RunStateStore, run_config: RunConfig, redis_endpoint: RedisEndpoint, tmp_path: Path,
        wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        process = self.start(run_config, redis_endpoint, tmp_path, "--exit-when-finished")
        try:
            wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
        assert process.returncode == 143, output
        assert list((tmp_path / "checkpoints").glob("step-*"))

    def test_ends_with_code_2_and_no_traceback_when_checkpoints_are_gone(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        redis_endpoint: RedisEndpoint, tmp_path: Path,
    ) -> None:  # fmt: skip
        redis_client.hset(keys.run, "policy_version", 3)
        process = self.start(run_config, redis_endpoint, tmp_path)
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2
        assert "error: run" in output
        assert "published policy version 3 and" in output
        assert "its checkpoints are gone" in output
        assert "Traceback" not in output

    def test_ends_with_code_2_before_any_work_where_no_checkpoint_could_be_written(
        self, seeded_state: RunStateStore, run_config: RunConfig, redis_endpoint: RedisEndpoint, tmp_path: Path
    ) -> None:
        (tmp_path / "checkpoints").write_text("a file")
        output, _ = (process := self.start(run_config, redis_endpoint, tmp_path)).communicate(timeout=PATIENCE_S)
        assert process.returncode == 2
        assert f"can make and write at {tmp_path / 'checkpoints'} on" in output
        assert "(File exists)" in output
        assert "Traceback" not in output
        assert "learns on cpu" in output
        assert seeded_state.read().evaluations_requested == 0
