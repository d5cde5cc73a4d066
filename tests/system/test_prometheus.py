"""A real Prometheus finds every process of a run through service discovery and scrapes it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from replay_service.config_file import load_run_config
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from tests.system.conftest import Start
from tests.system.launching import SMALL_PEN, Launched

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="no prometheus on the PATH (apt-get install prometheus)"
    ),
]

PROCESSES = {"replay", "learner", "evaluator", "actor-0", "actor-1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return json.load(reply)


def discovery_url(run: Launched) -> str:
    client = connect(RedisEndpoint.load(run.run_dir / "redis" / "connection.json"))
    run_id = load_run_config(run.run_dir / "config.toml").run_id
    address = client.hget(Keys(run_id).run, "discovery")
    client.close()
    assert address is not None
    return f"http://{address.decode()}/targets"


def query(address: str, expression: str) -> dict[str, float]:
    """Value by process name."""
    found = fetch(f"http://{address}/api/v1/query?query={expression}")
    return {item["metric"].get("process", ""): float(item["value"][1]) for item in found["data"]["result"]}


def test_prometheus_scrapes_every_process_that_discovery_names(start: Start, tmp_path: Path) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000")
    run.wait_until(lambda state: state.env_steps >= 1000 and state.evaluations_done >= 1)
    url = discovery_url(run)
    groups = fetch(url)
    assert {group["labels"]["process"] for group in groups} == PROCESSES
    assert {group["labels"]["role"] for group in groups} == {"replay", "learner", "evaluator", "actor"}

    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: awac\n"
        f"    http_sd_configs: [{{url: '{url}', refresh_interval: 1s}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "prometheus.log").open("w") as log:
        prometheus = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
             f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        up: dict[str, float] = {}
        while time.monotonic() < deadline:
            try:
                up = query(address, "up")
            except OSError:
                up = {}
            if up == dict.fromkeys(PROCESSES, 1.0):
                break
            time.sleep(0.5)
        assert up == dict.fromkeys(PROCESSES, 1.0)
        assert query(address, "awac_replay_env_steps_total")["replay"] >= 1000
        assert query(address, "awac_learner_grad_steps_total")["learner"] > 0
        stored = query(address, "awac_actor_env_steps_total")
        assert set(stored) == {"actor-0", "actor-1"}
        assert query(address, "awac_evaluations_total")["evaluator"] >= 1
    finally:
        prometheus.terminate()
        prometheus.wait()


def test_metric_names_and_help_texts_pass_promtool(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000")
    run.wait_until(lambda state: state.evaluations_done >= 1 and state.env_steps > 0)
    for group in fetch(discovery_url(run)):
        with urllib.request.urlopen(f"http://{group['targets'][0]}/metrics", timeout=5) as reply:
            text = reply.read()
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
