"""The learner's settings: presets as documented, nonsense refused by name."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any

import pytest

from learner.config import PRESETS, LearnerConfig
from learner.threads import threads_for
from replay_service.errors import ConfigError
from replay_service.process import available_cores

DOCUMENTED: dict[str, dict[str, Any]] = {
    "published": {},
    "paper": {
        "policy_hidden_sizes": (256, 256, 256, 256),
        "critic_hidden_sizes": (256, 256, 256, 256),
        "temperature": 0.3,
        "advantage_clip": None,
    },
    "locomotion": {
        "policy_hidden_sizes": (256, 256, 256, 256),
        "temperature": 2.0,
        "advantage_clip": None,
        "value_estimate": "sample",
        "max_q": None,
        "use_terminals": True,
    },
    "strong": {
        "batch_size": 256,
        "offline_batch_size": 256,
        "policy_average_rate": 0.001,
        "evaluated_average_rate": 0.0002,
        "num_critics": 4,
        "critic_layer_norm": True,
        "target_initialisation": "copy",
        "n_step": 3,
        "max_q": None,
        "min_target": -100.0,
        "max_target": 0.0,
        "weighting": "exponential",
        "advantage_clip": None,
        "max_weight": 20.0,
        "normalise_weights": True,
        "advantage_critics": "mean",
        "offline_fraction": 0.5,
    },
    "behaviour-cloning": {"weighting": "uniform", "offline_batch_size": 256},
}


def test_the_defaults_are_the_authors_hand_script() -> None:
    config = asdict(LearnerConfig())
    published = {
        "batch_size": 1024,
        "offline_batch_size": 128,
        "discount": 0.99,
        "n_step": 1,
        "target_update_rate": 0.005,
        "target_initialisation": "independent",
        "policy_learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
        "policy_weight_decay": 1e-4,
        "policy_hidden_sizes": (256, 256),
        "critic_hidden_sizes": (256, 256),
        "critic_layer_norm": False,
        "policy_average_rate": 1.0,
        "evaluated_average_rate": None,
        "num_critics": 2,
        "num_target_critics": 2,
        "min_log_std": -6.0,
        "max_log_std": 0.0,
        "temperature": 0.5,
        "advantage_clip": 0.5,
        "weighting": "batch_softmax",
        "max_weight": None,
        "normalise_weights": False,
        "value_estimate": "mean_action",
        "value_samples": 1,
        "max_q": 0.0,
        "min_target": None,
        "max_target": None,
        "use_terminals": False,
        "offline_fraction": None,
    }
    assert {name: config[name] for name in published} == published


def test_there_are_exactly_the_documented_presets() -> None:
    assert set(PRESETS) == set(DOCUMENTED)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_preset_builds_and_differs_from_the_defaults_exactly_as_documented(name: str) -> None:
    default, preset = asdict(LearnerConfig()), asdict(LearnerConfig(**PRESETS[name]))
    assert {field: value for field, value in preset.items() if value != default[field]} == DOCUMENTED[name]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_preset_names_only_settings_that_exist(name: str) -> None:
    assert set(PRESETS[name]) <= {field.name for field in fields(LearnerConfig)}


NONSENSE: list[tuple[str, Any]] = [
    ("batch_size", 0),
    ("offline_batch_size", -1),
    ("n_step", 0),
    ("num_critics", 0),
    ("num_target_critics", 0),
    ("value_samples", 0),
    ("publish_every_grad_steps", 0),
    ("keep_checkpoints", 0),
    ("policy_learning_rate", 0.0),
    ("policy_learning_rate", math.nan),
    ("critic_learning_rate", -3e-4),
    ("critic_learning_rate", math.inf),
    ("temperature", 0.0),
    ("temperature", math.nan),
    ("report_every_s", 0.0),
    ("checkpoint_every_s", -1.0),
    ("policy_weight_decay", -1e-4),
    ("policy_weight_decay", math.nan),
    ("policy_weight_decay", math.inf),
    ("evaluate_every_env_steps", -1),
    ("threads", -1),
    ("policy_average_rate", 0.0),
    ("evaluated_average_rate", 0.0),
    ("evaluated_average_rate", 1.1),
    ("evaluated_average_rate", math.nan),
    ("discount", 1.01),
    ("discount", -0.1),
    ("discount", math.nan),
    ("target_update_rate", 1.5),
    ("max_weight", 0.0),
    ("max_weight", math.inf),
    ("offline_fraction", 1.1),
    ("offline_fraction", -0.1),
    ("min_log_std", 0.0),  # not below max_log_std
    ("min_log_std", math.nan),
    ("min_log_std", -math.inf),
    ("max_log_std", math.nan),
    ("max_log_std", math.inf),
    ("advantage_clip", math.nan),
    ("max_q", math.nan),
    ("min_target", math.nan),
    ("max_target", math.inf),
    ("policy_hidden_sizes", (256, 0)),
    ("critic_hidden_sizes", (-1,)),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE, ids=[f"{name}={value}" for name, value in NONSENSE])
def test_nonsense_is_refused_with_the_name_of_the_setting(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"learner\.{name}"):
        LearnerConfig(**{name: value})


def test_more_target_critics_than_critics_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"learner\.num_critics: expected at least 3, got 2"):
        LearnerConfig(num_target_critics=3)


def test_bounds_of_the_target_that_leave_nothing_between_are_refused() -> None:
    assert LearnerConfig(min_target=-100.0, max_target=0.0).min_target == -100.0
    with pytest.raises(ConfigError, match=r"learner\.min_target: expected below -5, got 0"):
        LearnerConfig(min_target=0.0, max_target=-5.0)


def test_bounds_themselves_are_allowed() -> None:
    LearnerConfig(discount=1.0, target_update_rate=0.0, policy_weight_decay=0.0, offline_fraction=0.0)
    LearnerConfig(discount=0.0, target_update_rate=1.0, offline_fraction=1.0, policy_hidden_sizes=(), n_step=1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"batch_size": 256}, 1), ({"batch_size": 513}, None), ({"batch_size": 1024, "threads": 3}, 3)],
)
def test_small_batches_get_one_thread(changes: dict[str, Any], expected: int | None) -> None:
    assert threads_for(LearnerConfig(**changes)) == (expected or available_cores())
