from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from replay_service.policy_weights import PolicySpec

if TYPE_CHECKING:
    from tests.conftest import MakePolicyWeights


def test_layers_lead_from_observation_to_action() -> None:
    assert PolicySpec(39, 30, (256, 128)).layer_shapes == ((256, 39), (128, 256), (30, 128))
    assert PolicySpec(39, 30, ()).layer_shapes == ((30, 39),)


def test_weights_that_fit_their_spec_have_no_problem(make_policy_weights: MakePolicyWeights) -> None:
    for hidden_sizes in ((), (4,), (4, 5, 6)):
        assert make_policy_weights(hidden_sizes=hidden_sizes).problem() is None


def test_a_missing_layer_is_named(make_policy_weights: MakePolicyWeights) -> None:
    good = make_policy_weights()
    for spoiled in (replace(good, weights=good.weights[:-1]), replace(good, biases=(*good.biases, good.log_std))):
        assert str(spoiled.problem()).startswith("expected 3 layers, got")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_each_array_is_checked_for_shape_and_values(make_policy_weights: MakePolicyWeights, value: float) -> None:
    good = make_policy_weights(hidden_sizes=(4,))
    first, last = good.weights
    assert replace(good, weights=(first.T, last)).problem() == "weights[0]: expected (4, 3) float32, got (3, 4) float32"
    bias = np.array([value], dtype=np.float32)
    assert replace(good, biases=(good.biases[0], bias)).problem() == (
        "biases[1]: expected finite values, got NaN or infinity"
    )
    assert replace(good, log_std=bias).problem() == "log_std: expected finite values, got NaN or infinity"
    assert (
        replace(good, log_std=np.zeros(2, np.float32)).problem() == "log_std: expected (1,) float32, got (2,) float32"
    )
