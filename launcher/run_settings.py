"""The settings of a run, read from its `config.toml` under one flat name each, and in what two runs differ.

A setting that is named in neither list below is taken for one that decides what a run learns, so that a new one is
compared until somebody says otherwise. The number of actors is such a setting: they share the limiter's band, and the
more there are, the older are the policies that they follow.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from launcher.experiment import ExperimentConfig
from replay_service.config_file import read_toml

OF_THE_MACHINE = (
    "run_id", "redis_url", "metrics_host", "discovery_port", "wandb",
    "replay.max_memory_mb", "replay.port", "replay.server_path", "replay.actor_timeout_s",
    "learner.report_every_s", "learner.checkpoint_every_s", "learner.keep_checkpoints", "learner.threads",
    "learner.cuda_graph", "actor.*", "launcher.*",
)  # fmt: skip
"""Patterns of settings that say where a run runs, how it is watched and how it mends."""
OF_THE_EVALUATION = ("learner.evaluate_every_env_steps", "learner.evaluate_untrained", "evaluator.*")
"""Patterns of settings that say how often and how carefully a run is judged."""
_MOST_NAMED = 3
_ABSENT = "absent"


def read_settings(path: Path) -> dict[str, object]:
    """Read a run's configuration: flat name, as in learner.batch_size, -> value.

    A setting that the file lacks, because its run is older than the setting, has its default.

    Raises:
        ConfigError: the file is missing or not TOML.
    """
    return flat_settings(read_toml(path))


def flat_settings(tables: Mapping[str, object]) -> dict[str, object]:
    """The settings in the tables of a configuration, as `read_settings`."""
    return {**dict(_flat(tomllib.loads(ExperimentConfig().to_toml()))), **dict(_flat(tables))}


def describe_differences(one: Mapping[str, object], other: Mapping[str, object], *, may_differ: tuple[str, ...]) -> str:
    """Name the first settings in which two runs differ, each with both values; an empty text where there is none.

    Args:
        one: settings of a run.
        other: settings of another.
        may_differ: patterns of settings that are not looked at.
    """
    names = [name for name in dict.fromkeys((*one, *other)) if not any(fnmatchcase(name, p) for p in may_differ)]
    differing = [name for name in names if one.get(name, _ABSENT) != other.get(name, _ABSENT)]
    shown = [f"{name} ({one.get(name, _ABSENT)!r} and {other.get(name, _ABSENT)!r})" for name in differing]
    more = [f"{len(shown) - _MOST_NAMED} more"] if len(shown) > _MOST_NAMED else []
    return ", ".join([*shown[:_MOST_NAMED], *more])


def changed_settings(saved: Path, wanted: ExperimentConfig) -> str:
    """What a run will do otherwise once it is resumed, as `describe_differences`: its file before, and now.

    Raises:
        ConfigError: the file is missing or not TOML.
    """
    now = flat_settings(tomllib.loads(wanted.to_toml()))
    return describe_differences(read_settings(saved), now, may_differ=OF_THE_MACHINE)


def _flat(tables: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
