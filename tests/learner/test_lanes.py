from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from learner.lanes import FEWEST_ROWS, Lanes
from learner.update import gradient_step, named_tensors
from tests.learner.test_update import (
    VARIANTS,
    SlowAwac,
    float64_state,
    fresh_state,
    parameters,
    random_batch,
    small_config,
)


class TestLanes:
    def test_each_lane_works_in_a_thread_of_its_own_and_the_first_is_the_caller(self) -> None:
        seen: dict[int, int] = {}
        lanes = Lanes(3)
        lanes.run(lambda lane: seen.__setitem__(lane, threading.get_ident()))
        assert sorted(seen) == [0, 1, 2]
        assert seen[0] == threading.get_ident()
        assert len(set(seen.values())) == 3
        lanes.close()

    def test_no_lane_records_gradients(self) -> None:
        parameter = torch.ones(2, requires_grad=True)
        recorded: list[bool] = []
        lanes = Lanes(2)
        lanes.run(lambda _lane: recorded.append((2.0 * parameter).requires_grad))
        assert recorded == [False, False]
        lanes.close()

    @pytest.mark.parametrize("failing", [0, 1, 2])
    def test_an_error_of_any_lane_is_raised_after_all_have_ended_and_the_lanes_work_on(self, failing: int) -> None:
        lanes = Lanes(3)
        ended: list[int] = []

        def work(lane: int) -> None:
            if lane == failing:
                raise KeyError("lane")
            ended.append(lane)

        with pytest.raises(KeyError, match="lane"):
            lanes.run(work)
        assert sorted(ended) == [lane for lane in range(3) if lane != failing]
        lanes.run(ended.append)
        assert sorted(ended[-3:]) == [0, 1, 2]
        lanes.close()

    def test_refuses_no_lane(self) -> None:
        with pytest.raises(ValueError, match="at least 1 lane, got 0"):
            Lanes(0)

    @pytest.mark.parametrize(
        ("count", "rows", "expected"),
        [(1, 7, [7]), (2, 7, [3, 4]), (3, 7, [2, 2, 3]), (4, 6, [2, 2, 2]), (4, 1, [1])],
    )
    def test_shares_are_even_and_none_is_too_small(self, count: int, rows: int, expected: list[int]) -> None:
        lanes = Lanes(count, fewest_rows=2)
        shares = lanes.shares(rows)
        assert [share.stop - share.start for share in shares] == expected
        assert [row for share in shares for row in range(rows)[share]] == list(range(rows))
        lanes.close()

    def test_a_small_batch_stays_in_one_lane(self) -> None:
        lanes = Lanes(2)
        assert len(lanes.shares(2 * FEWEST_ROWS - 1)) == 1
        assert len(lanes.shares(2 * FEWEST_ROWS)) == 2
        lanes.close()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_a_step_by_three_lanes_equals_the_slow_implementation(changes: dict[str, Any]) -> None:
    config = small_config(**changes)
    state = float64_state(config)
    state.lanes = Lanes(3, fewest_rows=1)
    slow = SlowAwac(state, config)
    for seed in range(2):
        batch = random_batch(seed, size=7)  # shares of two, two and three
        metrics = gradient_step(state, batch, config)
        for name, value in slow.step(batch).items():
            assert float(getattr(metrics, name)) == pytest.approx(value, rel=1e-9, abs=1e-12), name
        found = parameters(state)
        for part, values in (("policy", slow.policy), ("critics", slow.critics), ("targets", slow.targets)):
            for name, expected in values.items():
                np.testing.assert_allclose(found[f"{part}.{name}"], expected, rtol=1e-8, atol=1e-10, err_msg=name)
    state.lanes.close()


def test_the_same_number_of_lanes_gives_the_same_bits() -> None:
    config = small_config(critic_layer_norm=True, policy_average_rate=0.5, evaluated_average_rate=0.1)
    results = []
    for _ in range(2):
        state = fresh_state(config)
        state.lanes = Lanes(3, fewest_rows=16)
        for seed in range(20):
            gradient_step(state, random_batch(seed, dtype=torch.float32, size=64), config)
        results.append(named_tensors(state))
        state.lanes.close()
    assert {"average_policy.log_std_logit", "evaluated_average.log_std_logit"} <= results[0].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
