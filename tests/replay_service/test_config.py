from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from replay_service.config import (
    EnvironmentConfig,
    ReplayConfig,
    RunConfig,
    require_at_least,
    require_between,
    require_finite_at_least,
    require_positive,
)
from replay_service.errors import ConfigError

OUT_OF_RANGE: list[tuple[Callable[..., object], str, Any]] = [
    (RunConfig, "env", ""),
    (RunConfig, "seed", -1),
    (RunConfig, "seed", -(10**400)),
    (RunConfig, "seed", 2**63),
    (RunConfig, "seed", 10**400),
    (RunConfig, "actors", 0),
    (RunConfig, "num_offline_steps", -1),
    (RunConfig, "num_env_steps", -1),
    (RunConfig, "utd_ratio", 0.0),
    (RunConfig, "utd_ratio", float("nan")),
    (RunConfig, "utd_ratio", float("inf")),
    (RunConfig, "utd_ratio", 10**400),
    (RunConfig, "initial_env_steps", -1),
    (RunConfig, "max_env_steps_ahead", -1),
    (RunConfig, "rollout_length", 0),
    (RunConfig, "discovery_port", -1),
    (RunConfig, "discovery_port", 65_536),
    (ReplayConfig, "capacity", 0),
    (ReplayConfig, "max_memory_mb", 63),
    (ReplayConfig, "port", -1),
    (ReplayConfig, "port", 65_536),
    (ReplayConfig, "actor_timeout_s", 0.0),
    (EnvironmentConfig, "max_episode_steps", -1),
    (EnvironmentConfig, "observation_dim", -1),
    (EnvironmentConfig, "action_dim", -1),
]

ON_THE_BOUND: list[tuple[Callable[..., object], str, Any]] = [
    (RunConfig, "seed", 0),
    (RunConfig, "seed", 2**63 - 1),
    (RunConfig, "actors", 1),
    (RunConfig, "num_offline_steps", 0),
    (RunConfig, "num_env_steps", 0),
    (RunConfig, "utd_ratio", 0.001),
    (RunConfig, "initial_env_steps", 0),
    (RunConfig, "rollout_length", 1),
    (RunConfig, "discovery_port", 65_535),
    (ReplayConfig, "capacity", 1),
    (ReplayConfig, "max_memory_mb", 64),
    (ReplayConfig, "port", 65_535),
    (EnvironmentConfig, "observation_dim", 0),
]


@pytest.mark.parametrize(("config_type", "name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_its_name(
    config_type: Callable[..., object], name: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=rf"{name}\b.*: expected"):
        config_type(**{name: value})


@pytest.mark.parametrize(("config_type", "name", "value"), ON_THE_BOUND)
def test_a_value_on_its_bound_is_accepted(config_type: Callable[..., object], name: str, value: object) -> None:
    assert getattr(config_type(**{name: value}), name) == value


def test_the_text_of_a_refusal_has_field_bound_and_value() -> None:
    with pytest.raises(ConfigError, match=r"^actors: expected at least 1, got 0$"):
        require_at_least("actors", 0, 1)
    with pytest.raises(ConfigError, match=r"^utd_ratio: expected a number above 0, got -2$"):
        require_positive("utd_ratio", -2)
    with pytest.raises(ConfigError, match=r"^discount: expected a number from 0 to 1, got 1.5$"):
        require_between("discount", 1.5, 0, 1)
    with pytest.raises(ConfigError, match=r"^cpus: expected a finite number of at least 0, got inf$"):
        require_finite_at_least("cpus", float("inf"), 0)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_number_that_nobody_would_read_is_told_by_its_length(sign: int) -> None:
    with pytest.raises(ConfigError, match=r"^seed: expected at .*, got a number of some 5000 digits$"):
        require_at_least("seed", sign * 10**5000, 0)
    with pytest.raises(ConfigError, match=r"^port: .*, got a number of some 5000 digits$"):
        require_between("port", sign * 10**5000, 0, 65_535)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), float("-inf"), -0.5, 10**400])
def test_what_is_no_finite_number_of_at_least_a_bound(value: float) -> None:
    require_finite_at_least("x", 0.0, 0)
    with pytest.raises(ConfigError, match=r"^x: expected a finite number of at least 0, got "):
        require_finite_at_least("x", value, 0)


def test_nan_is_in_no_range() -> None:
    with pytest.raises(ConfigError):
        require_at_least("x", float("nan"), 0)
    with pytest.raises(ConfigError):
        require_between("x", float("nan"), 0, 1)


class TestBand:
    @pytest.mark.parametrize(
        ("settings", "tolerance"),
        [
            ({"actors": 1, "rollout_length": 10}, 1_000),
            ({"actors": 8, "rollout_length": 200}, 3_200),
            ({"actors": 8, "rollout_length": 200, "max_env_steps_ahead": 500}, 500),
            ({"actors": 1, "rollout_length": 200, "utd_ratio": 0.001}, 1_200),
        ],
    )
    def test_its_width_is_the_setting_or_room_for_two_rollouts_of_every_actor(
        self, settings: dict[str, Any], tolerance: int
    ) -> None:
        assert RunConfig(**settings).tolerance_env_steps == tolerance

    def test_a_band_in_which_both_sides_would_wait_for_ever_is_refused(self) -> None:
        assert RunConfig(rollout_length=200, utd_ratio=0.1, max_env_steps_ahead=210).tolerance_env_steps == 210
        with pytest.raises(ConfigError, match=r"max_env_steps_ahead .*: expected at least 210, got 209"):
            RunConfig(rollout_length=200, utd_ratio=0.1, max_env_steps_ahead=209)


class TestSpec:
    def test_it_is_that_of_the_environment(self) -> None:
        shape = EnvironmentConfig(max_episode_steps=200, observation_dim=39, action_dim=30)
        spec = RunConfig(env="relocate", environment=shape).spec
        assert (spec.env, spec.observation_dim, spec.action_dim, spec.max_episode_steps) == ("relocate", 39, 30, 200)

    @pytest.mark.parametrize("missing", ["max_episode_steps", "observation_dim", "action_dim"])
    def test_a_shape_that_was_never_filled_in_is_named(self, missing: str) -> None:
        shape: dict[str, Any] = {"max_episode_steps": 200, "observation_dim": 39, "action_dim": 30, missing: 0}
        with pytest.raises(ConfigError, match="launcher up"):
            _ = RunConfig(environment=EnvironmentConfig(**shape)).spec
