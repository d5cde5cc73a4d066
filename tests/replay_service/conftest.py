"""Fixtures for the tests of the online stream."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replay_service.experience import ExperienceSpec
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.reports import ActorLedger, Reports
from replay_service.trajectory_stream import Quarantine, TrajectoryReader


@pytest.fixture
def reader(redis_client: RedisClient, keys: Keys, spec: ExperienceSpec) -> TrajectoryReader:
    return TrajectoryReader(redis_client, keys.online, spec)


@pytest.fixture
def quarantine(redis_client: RedisClient, keys: Keys) -> Quarantine:
    return Quarantine(redis_client, keys)


@pytest.fixture
def ledger(redis_client: RedisClient, keys: Keys) -> Callable[[], ActorLedger]:
    """The ledger of the only actor."""
    reports = Reports(redis_client, keys)

    def read() -> ActorLedger:
        (only,) = reports.actors()
        return only

    return read
