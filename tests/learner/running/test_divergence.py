"""A learner whose numbers leave the finite ones ends with a message, and leaves a checkpoint to go on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.checkpoint import CheckpointStore, Progress
from learner.update import make_state, named_tensors
from replay_service.config import RunConfig
from replay_service.errors import LearningDiverged
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.run_state import Phase, RunStateStore
from replay_service.weights_channel import WeightsChannel
from tests.learner.running.driving import CONFIG, CPU, DriveRun, StartLearner, WaitUntil

OVERFLOWING = replace(CONFIG, weighting="exponential", temperature=1e-9, advantage_clip=None, max_weight=None)
"""exp(A / 1e-9) is infinite for nearly every transition that is better than the policy's own action."""


def test_it_ends_and_goes_on_from_the_checkpoint_before_with_a_setting_that_holds(
    seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
    start_learner: StartLearner, drive: DriveRun, tmp_path: Path, wait_until: WaitUntil,
) -> None:  # fmt: skip
    driving = drive(run_config)
    driving.until_stopped(start_learner(stop_at_grad_step=50))
    acting = WeightsChannel(redis_client, keys).fetch()
    assert acting is not None

    diverging = start_learner(config=OVERFLOWING)
    driving.until_stopped(diverging)
    with pytest.raises(LearningDiverged, match=r"learning has diverged: after \d+ gradient steps .* NaN or infinite"):
        diverging.join()
    after = WeightsChannel(redis_client, keys).fetch()  # raises for weights that are not finite
    assert after is not None
    restored = make_state(CONFIG, run_config.spec, seed=0, device=CPU)
    store = CheckpointStore(tmp_path / "checkpoints", spec=run_config.spec, config=CONFIG)
    assert store.restore(restored) is not None
    assert all(tensor.isfinite().all() for tensor in named_tensors(restored).values())

    start_learner(config=replace(OVERFLOWING, max_weight=20.0, normalise_weights=True))

    def is_finished() -> bool:
        driving.act()  # a restored learner has fewer updates than actors were admitted for: no look at the band
        return seeded_state.read().phase is Phase.FINISHED

    wait_until(is_finished, "the run to finish")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_checkpoint_is_not_written_over_by_a_state_that_is_not_finite(
    run_config: RunConfig, tmp_path: Path, poison: float
) -> None:
    store = CheckpointStore(tmp_path, spec=run_config.spec, config=replace(CONFIG, keep_checkpoints=1))
    state = make_state(CONFIG, run_config.spec, seed=0, device=CPU)
    sound = store.save(state, Progress(offline_grad_steps=3))
    with torch.no_grad():
        state.target_critics.weights[0][0, 0, 0] = poison
    with pytest.raises(LearningDiverged, match=r"after 4 gradient steps targets.weights.0 is NaN or infinite"):
        store.save(state, Progress(offline_grad_steps=4))
    assert [folder.name for folder in tmp_path.iterdir()] == [sound.name]


def test_a_policy_that_is_not_finite_is_not_given_to_actors(
    seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, start_learner: StartLearner,
    run_config: RunConfig, drive: DriveRun,
) -> None:  # fmt: skip
    drive(run_config).until_stopped(learner := start_learner(stop_at_grad_step=50))
    publisher, progress = learner.learner.session.publisher, Progress(offline_grad_steps=50, policy_version=99)
    before = redis_client.get(keys.weights)
    with torch.no_grad():
        learner.learner.session.state.policy.log_std_logit[0] = np.nan
    with pytest.raises(LearningDiverged, match="log_std: expected finite values"):
        publisher.publish(progress)
    assert redis_client.get(keys.weights) == before
