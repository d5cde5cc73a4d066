"""Prometheus's configuration and rules: valid, tested by promtool, and about metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.metrics_page import series_names
from replay_service.discovery import target_groups
from tests.deploy.expressions import metrics_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
TESTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool on the PATH (apt-get install prometheus)"
)


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


@needs_promtool
@pytest.mark.parametrize("name", ["prometheus.yml", "compose.yml"])
def test_configuration_and_rules_are_valid(name: str) -> None:
    checked = promtool("check", "config", name)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(RULES)} rules found" in checked.stdout


def test_containers_are_scraped_as_any_other_run() -> None:
    plain, composed = (yaml.safe_load((FOLDER / name).read_text()) for name in ("prometheus.yml", "compose.yml"))
    composed["scrape_configs"][0]["http_sd_configs"][0]["url"] = "http://127.0.0.1:9464/targets"
    assert composed == plain


@needs_promtool
def test_the_rules_do_what_their_tests_say() -> None:
    tested = promtool("test", "rules", "rules_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_a_changed_threshold_would_be_found(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "rules_test.yml", tmp_path)
    rules = (FOLDER / "rules.yml").read_text()
    (tmp_path / "rules.yml").write_text(rules.replace("ratio > 0.85", "ratio > 0.95"))
    assert promtool("test", "rules", "rules_test.yml", folder=tmp_path).returncode == 1


def test_every_alert_is_tested_firing_and_quiet() -> None:
    cases = [case for test in TESTS for case in test.get("alert_rule_test", [])]
    names = {rule["alert"] for rule in ALERTS}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


@pytest.mark.parametrize("rule", RULES, ids=[rule.get("alert") or rule["record"] for rule in RULES])
def test_every_rule_asks_for_metrics_that_exist(rule: dict[str, Any]) -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    found = metrics_of(rule["expr"])
    assert found
    assert found <= series_names() | recorded | {"up"}


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_every_alert_names_its_run_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert "{{ $labels.run }}" in rule["annotations"]["summary"]
    assert rule["annotations"]["action"].endswith(".")


def test_the_labels_that_rules_sum_by_are_those_of_service_discovery() -> None:
    (group,) = target_groups({"learner": "127.0.0.1:1"}, run_id="r", env="pen")
    labels = set(group["labels"])  # type: ignore[call-overload]
    for rule in RULES:
        for listed in re.findall(r"\bby \(([^)]*)\)|\bon \(([^)]*)\)", rule["expr"]):
            names = {name.strip() for part in listed for name in part.split(",") if name.strip()}
            assert names <= labels | {"kind"}, rule
