"""What is reported between two reports: means of the metrics, speed, and share of time waited."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from learner.checkpoint import Progress
from learner.config import LearnerConfig
from learner.report import MetricMeans
from learner.startup import fill_mirror
from learner.update import UpdateMetrics
from learner.upkeep import Upkeep
from replay_service.config import RunConfig
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.reports import Reports
from replay_service.run_state import RunStateStore
from replay_service.seeding import SeedInfo
from tests.learner.conftest import OpenSession

CONFIG = LearnerConfig(policy_hidden_sizes=(4,), critic_hidden_sizes=(4,), report_every_s=4.0)
NAMES = UpdateMetrics._fields


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def metrics(first: float) -> Tensor:
    """`first`, `first + 1`, ... in the order of `UpdateMetrics`."""
    return first + torch.arange(len(NAMES), dtype=torch.float32)


def named(first: float) -> dict[str, float]:
    return dict(zip(NAMES, metrics(first).tolist(), strict=True))


class TestMetricMeans:
    def test_are_means_since_the_last_take(self) -> None:
        clock = Clock()
        means = MetricMeans(clock)
        for first in (1.0, 2.0, 6.0):
            means.add(metrics(first))
        clock.now += 5.0
        assert means.seconds == 5.0
        assert means.take() == (named(3.0), 3, 5.0)
        clock.now += 2.0
        means.add(metrics(7.0))
        assert means.take() == (named(7.0), 1, 2.0)

    def test_of_no_step_are_none(self) -> None:
        clock = Clock()
        means = MetricMeans(clock)
        means.add(metrics(1.0))
        means.take()
        clock.now += 0.5
        assert means.take() == ({}, 0, 0.5)

    def test_do_not_change_with_the_tensor_that_they_were_given(self) -> None:
        # A replayed CUDA graph writes the metrics of every step into one tensor.
        means, written = MetricMeans(Clock()), metrics(1.0)
        means.add(written)
        means.add(written.add_(2.0))
        assert means.take()[0] == named(2.0)


def test_speed_and_waiting_are_of_the_time_since_the_last_report(
    open_session: OpenSession, run_config: RunConfig, online_state: RunStateStore, redis_client: RedisClient,
    keys: Keys, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clock = Clock()
    monkeypatch.setattr("learner.upkeep.time", SimpleNamespace(monotonic=clock, time=time.time))
    monkeypatch.setattr("learner.upkeep.MetricMeans", lambda: MetricMeans(clock))
    session, progress = open_session(run_config, replace(CONFIG, checkpoint_every_s=1e9)), Progress()
    upkeep = Upkeep(session, progress, fill_mirror(session, progress, SeedInfo("", 0, 0)))

    def sync(*, block_ms: int | None = None) -> None:
        clock.now += 3.0 if block_ms else 0.0

    monkeypatch.setattr(upkeep, "sync", sync)

    def reported() -> list[tuple[float, float, float]]:
        """(steps a second, share of time waited, mean of the first metric) of every report so far."""
        found = [report.metrics for _, report in Reports(redis_client, keys).learner_reports()]
        return [(m["grad_steps_per_second"], m["waiting_ratio"], m[NAMES[0]]) for m in found]

    upkeep.after_step(metrics(1.0))
    upkeep.await_experience("environment steps")
    assert reported() == []
    clock.now += 1.0
    upkeep.after_step(metrics(2.0))
    assert reported() == [(0.5, 0.75, 1.5)]
    clock.now += 2.0
    upkeep.after_step(metrics(5.0))
    clock.now += 3.0
    upkeep.after_step(metrics(6.0))
    assert reported()[1:] == [(0.4, 0.0, 5.5)]
    waited = {"role": "learner", "reason": "experience"}
    assert session.registry.get_sample_value("awac_wait_seconds_total", waited) == 3.0
