from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from replay_service.experience import SEED_ACTOR_ID, ExperienceSpec, Trajectory

if TYPE_CHECKING:
    from tests.conftest import MakeTrajectory


class TestSpec:
    SPEC = ExperienceSpec("relocate", 39, 30, 200)

    def test_its_fingerprint_is_what_it_always_was(self) -> None:
        """Actors and run must agree on it across versions of this project."""
        assert self.SPEC.fingerprint == "27b40438228d547d"

    @pytest.mark.parametrize(
        "changed", [{"env": "pen"}, {"observation_dim": 40}, {"action_dim": 31}, {"max_episode_steps": 201}], ids=str
    )
    def test_its_fingerprint_changes_with_every_field(self, changed: dict[str, Any]) -> None:
        assert replace(self.SPEC, **changed).fingerprint != self.SPEC.fingerprint


class TestTrajectory:
    @pytest.mark.parametrize(
        ("terminated", "truncated", "ends"),
        [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
    )
    def test_either_flag_ends_the_episode(
        self, make_trajectory: MakeTrajectory, terminated: bool, truncated: bool, ends: bool
    ) -> None:
        trajectory = make_trajectory(steps=4, terminated=terminated, truncated=truncated)
        assert (trajectory.ends_episode, trajectory.num_steps) == (ends, 4)

    def test_one_that_fits_has_no_problem(self, make_trajectory: MakeTrajectory, spec: ExperienceSpec) -> None:
        for steps in (1, spec.max_episode_steps):
            assert make_trajectory(steps=steps).problem(spec) is None

    def test_demonstrations_alone_may_be_longer_than_an_episode(
        self, make_trajectory: MakeTrajectory, spec: ExperienceSpec
    ) -> None:
        assert make_trajectory(steps=300, actor_id=SEED_ACTOR_ID).problem(spec) is None
        assert make_trajectory(steps=300).problem(spec) == "expected at most 20 steps, got 300"

    @pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
    def test_each_array_is_checked_for_type_shape_and_values(
        self, make_trajectory: MakeTrajectory, spec: ExperienceSpec, name: str
    ) -> None:
        good = make_trajectory(steps=5)
        array = getattr(good, name)

        def problem(changed: Any) -> str:
            spoiled: Trajectory = replace(good, **{name: changed})
            return str(spoiled.problem(spec))

        assert problem(array.astype(np.float64)).startswith(f"{name}: expected {array.shape} float32, got")
        assert problem(array[..., None]).startswith(f"{name}: expected {array.shape} float32, got")
        for value in (np.nan, np.inf, -np.inf):
            spoiled = array.copy()
            spoiled.flat[-1] = value
            assert problem(spoiled) == f"{name}: expected finite values, got NaN or infinity"
