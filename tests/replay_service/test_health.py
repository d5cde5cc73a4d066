"""The health check of containers, against a real metrics endpoint."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from replay_service.errors import ConfigError
from replay_service.health import Unhealthy, check, require_progress
from replay_service.process import serve_metrics
from tests.conftest import PATIENCE_S
from tests.ports import free_port


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def counter(registry: CollectorRegistry) -> Counter:
    return Counter("awac_actor_env_steps_total", "Steps of a test.", ["actor"], registry=registry)


@pytest.fixture
def port(registry: CollectorRegistry, counter: Counter, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.delenv("AWAC_METRICS_PORT", raising=False)
    counter.labels("0").inc()
    return int(serve_metrics(registry, "127.0.0.1").rpartition(":")[2])


def program(port: object, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "replay_service.health", *arguments],
        env={**os.environ, "AWAC_METRICS_PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def test_a_process_that_answers_with_its_series_is_healthy(port: int) -> None:
    assert program(port, "awac_actor_").returncode == 0
    assert program(port, "awac_evaluation_", "awac_actor_").returncode == 0


def test_one_without_them_is_not(port: int) -> None:
    done = program(port, "awac_replay_phase")
    assert done.returncode == 1
    assert "no series begins with awac_replay_phase" in done.stderr


def test_nobody_there(port: int) -> None:
    done = program(free_port(), "awac_actor_")
    assert done.returncode == 1
    assert "refused" in done.stderr


@pytest.mark.parametrize("text", ["", "0", "http"])
def test_the_port_must_be_known(text: str) -> None:
    done = program(text, "awac_actor_")
    assert done.returncode == 2
    assert "AWAC_METRICS_PORT: expected the port" in done.stderr


def test_a_counter_that_stands_still_is_told_after_the_time_given(tmp_path: Path) -> None:
    file = tmp_path / "count"
    require_progress(7.0, file, stalled_after_s=300, now=1000)
    require_progress(7.0, file, stalled_after_s=300, now=1300)
    with pytest.raises(Unhealthy, match="no counter has moved for 301 s"):
        require_progress(7.0, file, stalled_after_s=300, now=1301)
    require_progress(8.0, file, stalled_after_s=300, now=1302)
    require_progress(8.0, file, stalled_after_s=300, now=1602)


def test_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("half")
    require_progress(7.0, tmp_path / "count", stalled_after_s=1, now=1000)
    assert (tmp_path / "count").read_text() == "7.0 1000"


def test_only_counters_of_the_role_count_as_progress(port: int, counter: Counter, tmp_path: Path) -> None:
    def look() -> str:
        check(port, ["awac_actor_"], stalled_after_s=300, file=tmp_path / "count")
        return (tmp_path / "count").read_text().split()[0]

    assert look() == "1.0"
    counter.labels("1").inc(2)
    assert look() == "3.0"


class TestFixedPort:
    def test_metrics_are_served_there(self, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
        port = free_port()
        monkeypatch.setenv("AWAC_METRICS_PORT", str(port))
        assert serve_metrics(registry, "127.0.0.1") == f"127.0.0.1:{port}"

    def test_a_second_process_is_told_why_not(
        self, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            monkeypatch.setenv("AWAC_METRICS_PORT", str(taken.getsockname()[1]))
            with pytest.raises(ConfigError, match=r"AWAC_METRICS_PORT: cannot listen on .*share an address"):
                serve_metrics(registry, "127.0.0.1")

    @pytest.mark.parametrize("text", ["65536", "-1", "metrics"])
    def test_what_is_no_port_is_refused(
        self, text: str, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWAC_METRICS_PORT", text)
        with pytest.raises(ConfigError, match="AWAC_METRICS_PORT: expected a port"):
            serve_metrics(registry, "127.0.0.1")
