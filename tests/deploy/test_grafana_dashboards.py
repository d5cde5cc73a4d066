"""The committed dashboards are the builder's, follow the house rules, and ask for metrics that exist."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.__main__ import FOLDER, texts
from launcher.metrics_page import series_names
from learner.update import UpdateMetrics
from tests.deploy.expressions import metrics_of

GRAFANA = FOLDER.parent
NAMES = sorted(texts())
PROCESS_METRICS = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}


def board(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return found


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in board(name)["panels"] if panel["type"] != "row"]


def substituted(expression: str) -> str:
    return expression.replace("$__rate_interval", "30s").replace("$run_id", "some-run")


EXPRESSIONS = [
    (name, panel["title"], target["expr"]) for name in NAMES for panel in panels(name) for target in panel["targets"]
]


def test_the_committed_files_are_what_the_builder_makes() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == NAMES
    for name, text in texts().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, "run: python -m deploy.grafana"


@pytest.mark.parametrize(("name", "title", "expression"), EXPRESSIONS, ids=[f"{t}:{e}" for _n, t, e in EXPRESSIONS])
def test_every_expression_parses_and_asks_for_metrics_that_exist(name: str, title: str, expression: str) -> None:
    found = metrics_of(substituted(expression))
    assert found
    assert found <= series_names() | PROCESS_METRICS
    assert 'run="$run_id"' in expression
    if "rate(" in expression:
        assert "[$__rate_interval]" in expression


def test_a_metric_that_does_not_exist_would_be_found() -> None:
    assert metrics_of(substituted('sum(rate(awac_nothing_total{run="$run_id"}[$__rate_interval]))')) == {
        "awac_nothing_total"
    }
    assert "awac_nothing_total" not in series_names()
    with pytest.raises(ValueError, match=r"."):
        metrics_of("sum(rate(awac_nothing_total[30s])")


@pytest.mark.parametrize("name", NAMES)
def test_house_rules(name: str) -> None:
    model = board(name)
    assert [variable["name"] for variable in model["templating"]["list"]] == ["datasource", "run_id"]
    ids = [panel["id"] for panel in model["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(name)]
    assert len(set(titles)) == len(titles)
    for panel in panels(name):
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0


@pytest.mark.parametrize("name", NAMES)
def test_panels_stay_within_24_columns_and_do_not_overlap(name: str) -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        return set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))

    taken: set[tuple[int, int]] = set()
    for panel in board(name)["panels"]:
        own = cells(panel)
        assert not own & taken, panel["title"]
        assert max(column for column, _row in own) < 24
        taken |= own


def test_the_overview_begins_with_the_learning_curve_and_shows_every_quantity_of_the_updates() -> None:
    titles = [panel["title"] for panel in board("awac-run.json")["panels"]]
    assert titles[:2] == ["Learning curve", "Success of evaluations"]
    shown = " ".join(expression for name, _title, expression in EXPRESSIONS if name == "awac-run.json")
    for quantity in UpdateMetrics._fields:
        assert f'quantity="{quantity}"' in shown, quantity


def test_links_lead_to_dashboards_that_exist() -> None:
    uids = {board(name)["uid"] for name in NAMES}
    for name in NAMES:
        assert {link["url"] for link in board(name)["links"]} <= {f"/d/{uid}" for uid in uids}


def test_provisioning_names_a_data_source_and_the_folder() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    (source,) = sources["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "${AWAC_PROMETHEUS_URL}")
    providers = yaml.safe_load((GRAFANA / "provisioning/dashboards/awac.yml").read_text(encoding="utf-8"))
    (provider,) = providers["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "${AWAC_DASHBOARDS}")
    assert Path(FOLDER).is_dir()
