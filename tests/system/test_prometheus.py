"""A real Prometheus finds every process of a run through service discovery and scrapes it."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.system.conftest import Start
from tests.system.launching import SMALL_PEN, wait_until
from tests.system.scraping import discovery_url, fetch, prometheus, samples

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="no prometheus on the PATH (apt-get install prometheus)"
    ),
]

PROCESSES = {"replay", "learner", "evaluator", "actor-0", "actor-1"}


def query(address: str, expression: str) -> dict[str, float]:
    """Value by process name."""
    return {i["metric"].get("process", ""): float(i["value"][1]) for i in samples(address, expression)}


def test_prometheus_scrapes_every_process_that_discovery_names(start: Start, tmp_path: Path) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000")
    run.wait_until(lambda state: state.env_steps >= 1000 and state.evaluations_done >= 1)
    url = discovery_url(run)
    groups = fetch(url)
    assert {group["labels"]["process"] for group in groups} == PROCESSES
    assert {group["labels"]["role"] for group in groups} == {"replay", "learner", "evaluator", "actor"}

    with prometheus(tmp_path, url) as address:

        def up() -> dict[str, float]:
            try:
                return query(address, "up")
            except OSError:
                return {}  # Prometheus still starts

        all_up = dict.fromkeys(PROCESSES, 1.0)
        wait_until(lambda: up() == all_up, "a scrape of every process", pause_s=0.5, told=lambda: str(up()))
        assert query(address, "awac_replay_env_steps_total")["replay"] >= 1000
        assert query(address, "awac_learner_grad_steps_total")["learner"] > 0
        stored = query(address, "awac_actor_env_steps_total")
        assert set(stored) == {"actor-0", "actor-1"}
        assert query(address, "awac_evaluations_total")["evaluator"] >= 1


def test_metric_names_and_help_texts_pass_promtool(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000")
    run.wait_until(lambda state: state.evaluations_done >= 1 and state.env_steps > 0)
    for group in fetch(discovery_url(run)):
        with urllib.request.urlopen(f"http://{group['targets'][0]}/metrics", timeout=5) as reply:
            text = reply.read()
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
