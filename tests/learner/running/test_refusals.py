"""A learner that cannot begin says what to change, and is not taken for one that has begun."""

from __future__ import annotations

from dataclasses import replace

import pytest

from learner.session import PROCESS_NAME
from replay_service.config import ReplayConfig, RunConfig
from replay_service.errors import ConfigError
from replay_service.run_state import RunStateStore
from tests.learner.running.driving import StartLearner


@pytest.mark.parametrize("capacity", [10**13, 10**18])  # more than there is, more than can be addressed
def test_more_transitions_than_the_device_has_room_for_are_refused(
    seeded_state: RunStateStore, run_config: RunConfig, start_learner: StartLearner, capacity: int
) -> None:
    run = replace(run_config, replay=ReplayConfig(capacity=capacity, evict_seed=False))
    seeded_state.initialise(run)
    with pytest.raises(ConfigError, match=rf"replay\.capacity {capacity:,}: cpu has no room .* smaller --replay\.cap"):
        start_learner(run=run).join()
    assert PROCESS_NAME not in seeded_state.endpoints()
