"""Torch on one thread, because the networks of these tests are tiny and tests run beside each other; and sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import torch

from learner.config import LearnerConfig
from learner.session import Session
from replay_service.config import RunConfig
from replay_service.connection import RedisEndpoint
from replay_service.process import StopSignal


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


class OpenSession(Protocol):
    """Signature of the `open_session` fixture."""

    def __call__(self, run: RunConfig, config: LearnerConfig) -> Session:
        """Open a learner's session on the CPU."""


@pytest.fixture
def open_session(redis_endpoint: RedisEndpoint, tmp_path: Path) -> Iterator[OpenSession]:
    """Open sessions whose learner never runs; they are closed with the test."""
    opened: list[Session] = []

    def open_one(run: RunConfig, config: LearnerConfig) -> Session:
        session = Session.open(
            run, config, redis_endpoint, checkpoint_dir=tmp_path, device=torch.device("cpu"), stop=StopSignal()
        )
        opened.append(session)
        return session

    yield open_one
    for session in opened:
        session.client.close()
