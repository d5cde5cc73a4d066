"""Settings that more than one role reads, and those of the replay service.

`RunConfig` stands at the top level of a configuration file, `ReplayConfig` in its `[replay]` table. Every field has
its unit in its name; a value out of range is refused with the field, the value and the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from replay_service.errors import ConfigError
from replay_service.experience import ExperienceSpec

_HIGHEST_PORT = 65_535
_LARGEST_WHOLE_NUMBER = 2**63 - 1
"""The counters of Redis, the generators of torch and TOML hold none that is larger."""
AUTO_ACTORS = -(2**31)
"""Stands for 'auto' until the launcher has put a number in its place; nobody types it by mistake."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """The `[environment]` table: shape of the environment, filled in by the launcher when left at 0."""

    max_episode_steps: int = 0
    """Time limit of an episode, in environment steps. 0: the task's own (200 for the hand tasks)."""
    observation_dim: int = 0
    """Length of an observation. 0: asked of the environment at start."""
    action_dim: int = 0
    """Length of an action. 0: asked of the environment at start."""
    action_low: tuple[float, ...] = ()
    """Lower bounds of the environment's actions. Empty: -1, as the policy's."""
    action_high: tuple[float, ...] = ()
    """Upper bounds of the environment's actions. Empty: 1, as the policy's."""

    def __post_init__(self) -> None:
        for name in ("max_episode_steps", "observation_dim", "action_dim"):
            require_at_least(f"environment.{name}", getattr(self, name), 0)


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The `[replay]` table: the replay service and its Redis."""

    capacity: int = 1_000_000
    """Transitions of online experience that are kept; the oldest go first."""
    evict_seed: bool = True
    """One first-in-first-out buffer over seed and online data, as the authors' (rlkit): once they exceed `capacity`
    together, the seed data leave first. false: the seed data stay for ever."""
    max_memory_mb: int = 4096
    """Memory limit of the embedded Redis, in MiB; at the limit it refuses writes rather than forgetting."""
    port: int = 0
    """TCP port of the embedded Redis. 0: a free one. It listens on the loopback interface, and on a Ray cluster of
    several nodes on the address of the launcher's node."""
    server_path: str = ""
    """Redis-compatible server to start. Default: valkey-server or redis-server on the PATH, else the packaged one."""
    actor_timeout_s: float = 60.0
    """An actor silent for this many seconds gives its admitted steps back to the others."""

    def __post_init__(self) -> None:
        require_at_least("replay.capacity", self.capacity, 1)
        require_at_least("replay.max_memory_mb", self.max_memory_mb, 64)
        require_between("replay.port", self.port, 0, _HIGHEST_PORT)
        require_positive("replay.actor_timeout_s", self.actor_timeout_s)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run is: the task, its data, its budget, and the ratio that holds learner and actors together."""

    env: str = "relocate"
    """Task to learn: pen, door or relocate (the paper's binary hand tasks), or any gymnasium id with Box spaces."""
    dataset: tuple[str, ...] = ()
    """Offline data: a Minari id or directory, a D4RL HDF5 file, a DAPG pickle, or an .npz; several may be given.
    Default: the demonstrations that ship with the project, for the three tasks. 'none': start with an empty buffer."""
    preset: str = "auto"
    """Named settings of the learner: published, paper, strong, locomotion or behaviour-cloning. auto: strong for
    the three tasks, locomotion for any other environment."""
    seed: int = 0
    """Root of every random generator of the run."""
    actors: int = 2
    """Number of rollout actors, one process and one environment each. auto: as many as keep the learner fed on this
    machine, measured for some seconds at the start."""
    num_offline_steps: int = 25_000
    """Gradient steps on the offline data before the first online step."""
    num_env_steps: int = 1_000_000
    """Budget of online environment steps, all actors together."""
    utd_ratio: float = 1.0
    """Gradient steps per online environment step (update-to-data ratio)."""
    initial_env_steps: int = 1_000
    """Online steps that are collected before the first online gradient step."""
    max_env_steps_ahead: int = 0
    """How many environment steps the actors may be ahead of the learner; at least `rollout_length + 1 / utd_ratio`, or
    both sides would wait for each other. 0: room for two rollouts of every actor."""
    lockstep: bool = False
    """Actors and learner take turns: an episode of every actor, then the gradient steps for it, then new weights. Two
    runs, and a run that was killed and resumed, then end in the same policy to the last bit on one kind of CPU."""
    rollout_length: int = 200
    """Environment steps in one message, at most; a message never crosses the end of an episode."""
    run_id: str = ""
    """Name of the run, and of its keys in Redis. Default: the run directory's name and the time."""
    redis_url: str = ""
    """A Redis to use (redis://, rediss:// or unix://). Default: an embedded server. Its password belongs into the
    environment variable AWAC_REDIS_PASSWORD, not here."""
    metrics_host: str = "127.0.0.1"
    """Interface of the Prometheus endpoints and of the service discovery. node: on a Ray cluster, the address of the
    node that a process runs on."""
    discovery_port: int = 0
    """Port of the replay service's HTTP service discovery for Prometheus. 0: a free one."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also log to Weights & Biases (extra `wandb`): offline writes below the run directory, to be sent later with
    `wandb sync`; online needs the login of that service (WANDB_API_KEY)."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)

    def __post_init__(self) -> None:
        if not self.env:
            raise ConfigError("env: expected a task name or a gymnasium id, got an empty text")
        require_at_least("seed", self.seed, 0)
        if self.actors != AUTO_ACTORS:
            require_at_least("actors", self.actors, 1)
        require_at_least("num_offline_steps", self.num_offline_steps, 0)
        require_at_least("num_env_steps", self.num_env_steps, 0)
        require_positive("utd_ratio", self.utd_ratio)
        require_at_least("initial_env_steps", self.initial_env_steps, 0)
        require_at_least("max_env_steps_ahead", self.max_env_steps_ahead, 0)
        require_at_least("rollout_length", self.rollout_length, 1)
        # A message larger than the buffer would be evicted as it is stored, and both sides would wait for ever.
        require_at_least("replay.capacity", self.replay.capacity, self.rollout_length)
        require_between("discovery_port", self.discovery_port, 0, _HIGHEST_PORT)
        if self.lockstep:
            # Nothing may leave the buffer, because what leaves it depends on the order of arrival.
            require_at_least("replay.capacity (with lockstep)", self.replay.capacity, self.num_env_steps)
        if self.max_env_steps_ahead:
            name = "max_env_steps_ahead (with this rollout_length and utd_ratio)"
            require_at_least(name, self.max_env_steps_ahead, self._smallest_tolerance)

    @property
    def tolerance_env_steps(self) -> int:
        """Width of the limiter's band, in environment steps (`max_env_steps_ahead` or its default)."""
        if self.lockstep:
            return self.actors * self.environment.max_episode_steps + self._smallest_tolerance
        usual = max(1_000, 2 * self.actors * self.rollout_length)
        return self.max_env_steps_ahead or max(usual, self._smallest_tolerance)

    @property
    def _smallest_tolerance(self) -> int:
        # A learner that has caught up can be 1 / utd_ratio steps behind the actors; one of them must still fit in.
        return self.rollout_length + math.ceil(1 / self.utd_ratio)

    @property
    def spec(self) -> ExperienceSpec:
        """The experience spec of the run.

        Raises:
            ConfigError: the environment's shape has not been filled in.
        """
        shape = self.environment
        if not (shape.observation_dim and shape.action_dim and shape.max_episode_steps):
            raise ConfigError(
                "environment: expected observation_dim, action_dim and max_episode_steps above 0; "
                "`launcher up` fills them in, a role that is started by hand needs them in its --config file"
            )
        return ExperienceSpec(self.env, shape.observation_dim, shape.action_dim, shape.max_episode_steps)


def require_at_least(name: str, value: float, bound: float) -> None:
    """Refuse a value below `bound`, and a whole number that is larger than any of a run's can be.

    Raises:
        ConfigError: names the field, the bound and the value.
    """
    if not value >= bound:
        raise ConfigError(f"{name}: expected at least {_shown(bound)}, got {_shown(value)}")
    if isinstance(value, int) and value > _LARGEST_WHOLE_NUMBER:
        raise ConfigError(f"{name}: expected at most {_LARGEST_WHOLE_NUMBER}, got {_shown(value)}")


def require_finite_at_least(name: str, value: float, bound: float) -> None:
    """Refuse a value that is not a finite number of at least `bound`.

    Raises:
        ConfigError: names the field, the bound and the value.
    """
    if not (_is_finite(value) and value >= bound):
        raise ConfigError(f"{name}: expected a finite number of at least {_shown(bound)}, got {_shown(value)}")


def require_positive(name: str, value: float) -> None:
    """Refuse a value that is not a finite number above 0.

    Raises:
        ConfigError: names the field and the value.
    """
    if not (value > 0 and _is_finite(value)):
        raise ConfigError(f"{name}: expected a number above 0, got {_shown(value)}")


def require_below_one(name: str, value: float) -> None:
    """Refuse a value outside [0, 1).

    Raises:
        ConfigError: names the field and the value.
    """
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"{name}: expected a number from 0 to below 1, got {_shown(value)}")


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value outside [low, high].

    Raises:
        ConfigError: names the field, the bounds and the value.
    """
    if not low <= value <= high:
        raise ConfigError(f"{name}: expected a number from {_shown(low)} to {_shown(high)}, got {_shown(value)}")


def _is_finite(value: float) -> bool:
    """Whether a number is one that a float can hold: an int that none can is as good as infinite."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: float) -> str:
    try:
        return f"{value:g}"
    except OverflowError:  # an int beyond all floats, which nobody wants to read either
        return f"a number of some {round(math.log10(abs(value)))} digits"
