"""A real Prometheus finds every process of a run through service discovery and scrapes it."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Start
from tests.system.launching import SMALL_PEN, wait_until
from tests.system.scraping import REPLY_TIMEOUT_S, discovery_url, fetch, prometheus, samples

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="no prometheus on the PATH (apt-get install prometheus)"
    ),
]

PROCESSES = {"replay", "learner", "evaluator", "actor-0", "actor-1"}


def all_groups(url: str) -> list[dict[str, Any]]:
    """What discovery tells once it names every process: an actor may start after another's first episodes."""
    groups: list[dict[str, Any]] = []

    def names_all() -> bool:
        nonlocal groups
        groups = fetch(url)
        return {group["labels"]["process"] for group in groups} >= PROCESSES

    wait_until(names_all, "discovery to name every process", told=lambda: str(groups))
    assert {group["labels"]["process"] for group in groups} == PROCESSES
    return groups


def query(address: str, expression: str) -> dict[str, float]:
    """Value by process name."""
    return {i["metric"].get("process", ""): float(i["value"][1]) for i in samples(address, expression)}


def test_prometheus_scrapes_every_process_that_discovery_names(start: Start, tmp_path: Path) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000")
    run.wait_until(lambda state: state.env_steps >= 1000 and state.evaluations_done >= 1)
    url = discovery_url(run)
    groups = all_groups(url)
    assert {group["labels"]["role"] for group in groups} == {"replay", "learner", "evaluator", "actor"}

    with prometheus(tmp_path, url) as address:

        def asked(expression: str) -> dict[str, float]:
            try:
                return query(address, expression)
            except OSError:
                return {}  # Prometheus still starts

        def scraped() -> bool:
            return (
                asked("up") == dict.fromkeys(PROCESSES, 1.0)
                and asked("awac_replay_env_steps_total").get("replay", 0.0) >= 1000
                and asked("awac_learner_grad_steps_total").get("learner", 0.0) > 0
                and set(asked("awac_actor_env_steps_total")) == {"actor-0", "actor-1"}
                and asked("awac_evaluations_total").get("evaluator", 0.0) >= 1
            )

        wait_until(scraped, "a scrape of every process", pause_s=0.5, told=lambda: str(asked("up")))


def test_metric_names_and_help_texts_pass_promtool(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000")
    run.wait_until(lambda state: state.evaluations_done >= 1 and state.env_steps > 0)
    for group in all_groups(discovery_url(run)):
        with urllib.request.urlopen(f"http://{group['targets'][0]}/metrics", timeout=REPLY_TIMEOUT_S) as reply:
            text = reply.read()
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
