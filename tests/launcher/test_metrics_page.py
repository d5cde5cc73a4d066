"""The page of metrics is the code's; names, units and explanations pass promtool."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest

from launcher.metrics_page import main, page, role_registries, rows, series_names

ROOT = Path(__file__).parents[2]
ROLES = ("replay", "learner", "actor", "evaluator")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool on the PATH (apt-get install prometheus)"
)


def promtool_check(registry: CollectorRegistry) -> subprocess.CompletedProcess[str]:
    disable_created_metrics()  # type: ignore[no-untyped-call] # as every role does
    text = generate_latest(registry).decode()
    assert text
    return subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)


@needs_promtool
@pytest.mark.parametrize("role", ROLES)
def test_names_units_and_help_pass_promtool(role: str) -> None:
    checked = promtool_check(role_registries()[role])
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_promtool_would_find_a_bad_name() -> None:
    registry = CollectorRegistry()
    Gauge("awac_actor_wait_milliseconds", "A unit that is none.", registry=registry)
    assert promtool_check(registry).returncode == 3


def test_every_metric_is_named_by_its_role_and_explained_in_a_sentence() -> None:
    prefixes = {
        "replay": "awac_replay_", "learner": "awac_learner_", "actor": "awac_actor_", "evaluator": "awac_evaluation",
    }  # fmt: skip
    for role, registry in role_registries().items():
        for row in rows(registry):
            assert row.series[0].startswith(prefixes[role]) or row.series == ("awac_wait_seconds_total",)
            assert row.text.endswith("."), row


def test_every_series_of_a_scrape_is_known() -> None:
    registry = CollectorRegistry()
    Counter("some_things_total", "Some.", ["kind"], registry=registry).labels("odd").inc()
    (row,) = rows(registry)
    assert row.series == ("some_things_total",)
    assert row.labels == (("kind", ("odd",)),)
    names = series_names()
    assert {"awac_actor_append_seconds_bucket", "awac_learner_grad_steps_total", "awac_replay_phase"} <= names
    for found in role_registries().values():
        for line in generate_latest(found).decode().splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            assert line.startswith("#") or name in names or name.endswith("_created")


def test_the_committed_page_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m launcher.metrics_page docs/metrics.md"
    for name in series_names():
        assert name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") in written


def test_the_page_is_written_where_one_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "page.md")]) == 0
    assert main([]) == 0
    assert capsys.readouterr().out == (tmp_path / "page.md").read_text(encoding="utf-8")
    assert main(["a", "b"]) == 2


def test_the_command_line_does_not_load_torch_for_it() -> None:
    program = "import sys; import launcher.metrics_page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
