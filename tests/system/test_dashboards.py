"""Every panel of the committed dashboards, and every recorded series, shows something of a real run."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import yaml

from replay_service.config_file import load_run_config
from tests.system.conftest import Start
from tests.system.launching import PATIENCE_S, SMALL_PEN
from tests.system.scraping import discovery_url, prometheus, samples

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="no prometheus on the PATH (apt-get install prometheus)"
    ),
]

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"


def expressions(run_id: str) -> dict[str, str]:
    """What each panel of both dashboards, and each recording rule, asks for."""
    found: dict[str, str] = {}
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", []):
                text = target["expr"].replace("$__rate_interval", "30s").replace("$run_id", run_id)
                found[f"{path.stem}: {panel['title']} {target['refId']}"] = text
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        found |= {rule["record"]: rule["record"] for rule in group["rules"] if "record" in rule}
    return found


def test_every_panel_and_every_recorded_series_answers(start: Start, tmp_path: Path) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000", "--utd-ratio", "0.5")
    # From here on something new happens within every range that a panel looks at.
    run.wait_until(lambda state: state.env_steps >= 400 and state.policy_version >= 1)
    waiting = expressions(load_run_config(run.run_dir / "config.toml").run_id)
    assert len(waiting) > 90
    with prometheus(tmp_path, discovery_url(run), RULES) as address:
        deadline = time.monotonic() + PATIENCE_S
        while waiting and time.monotonic() < deadline:
            assert run.process.poll() is None, run.output + run.logs()
            time.sleep(2.0)
            for name, expression in list(waiting.items()):
                try:
                    if samples(address, expression):
                        del waiting[name]
                except ConnectionError:
                    break  # Prometheus is still starting
                except OSError as error:
                    if getattr(error, "code", None) is not None:
                        raise AssertionError(f"{name}: {expression}: {error}") from error
                    break
    assert waiting == {}
