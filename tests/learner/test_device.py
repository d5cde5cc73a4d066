"""Which device the learner takes: one that is there, or a message."""

from __future__ import annotations

import logging

import pytest
import torch

from learner.__main__ import choose_device
from replay_service.errors import ConfigError


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(("name", "device"), [("auto", "cuda"), ("cpu", "cpu"), ("cuda", "cuda"), ("cuda:0", "cuda:0")])
def test_one_that_is_there_is_taken(name: str, device: str) -> None:
    assert choose_device(name) == torch.device(device)


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:1", "expected at most cuda:0"),
        ("cuda:7", "expected at most cuda:0"),
        ("mps", "expected auto, cpu, cuda or cuda:N, got 'mps'"),
        ("meta", "expected auto, cpu, cuda or cuda:N, got 'meta'"),
        ("xpu:0", "expected auto, cpu, cuda or cuda:N, got 'xpu:0'"),
        ("gpu", "expected auto, cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_any_other_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_device(name)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("built_for", "warnings"), [("12.8", 1), (None, 0)])
def test_the_cpu_in_place_of_a_gpu_that_the_driver_does_not_show_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, built_for: str | None, warnings: int
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_for)
    with caplog.at_level(logging.WARNING):
        assert choose_device("auto") == torch.device("cpu")
    assert caplog.text.count("the driver shows no GPU: the CPU is taken") == warnings
