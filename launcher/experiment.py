"""An experiment: everything that `launcher up` can be told, as data, and its TOML form."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from cyclopts import Parameter

from actors.config import ActorConfig, EvaluatorConfig
from learner.config import PRESETS, SHAPING_SETTINGS, LearnerConfig
from replay_service.config import (
    EnvironmentConfig,
    RunConfig,
    require_at_least,
    require_finite_at_least,
    require_positive,
)
from replay_service.config_file import NONE, load_role_config, load_run_config, nearest
from replay_service.errors import ConfigError
from replay_service.tasks import find_task

_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")
"""What the learner takes; whether the machine has it, only the learner can say, which may run on another one."""


@dataclass(frozen=True, kw_only=True)
class LauncherConfig:
    """The `[launcher]` table: where the roles run and how often they are replaced."""

    device: Annotated[str, Parameter(alias="--device")] = "auto"
    """Device of the learner: auto (a CUDA GPU when there is one), cpu, cuda, or cuda:N for one of several."""
    ray_address: Annotated[str, Parameter(alias="--ray-address")] = ""
    """A running Ray cluster ('auto' or host:port). Default: a private one on this machine."""
    actors_per_host: int = 64
    """Most actors that one host process forks, on a single machine."""
    actors_per_pool: int = 8
    """Most actors that one host process forks on a cluster of several nodes. A pool is placed as a whole and fetches
    each policy version once: larger ones save network, smaller ones find room more easily. Never more than an even
    share of the nodes, nor than fit on the widest one."""
    actor_cpus: float = 1.0
    """CPUs that Ray reserves for an actor, like the four below: nothing keeps a process from using more."""
    learner_cpus: float = 1.0
    """CPUs reserved for the learner."""
    learner_gpus: float = 1.0
    """GPUs reserved for the learner when the cluster has one and `device` is not cpu; a share, such as 0.5, will do."""
    replay_cpus: float = 0.5
    """CPUs reserved for the replay service and its Redis."""
    evaluator_cpus: float = 0.5
    """CPUs reserved for the evaluator."""
    wait_for_nodes: bool = False
    """Start also when the cluster's nodes cannot hold the whole run: what finds no room waits for nodes that join.
    Default: refuse."""
    max_restarts: int = 10
    """Crashes of one role within `restart_window_s` after which the run is ended."""
    restart_window_s: float = 600.0
    """Length of the window in which `max_restarts` are counted."""
    stop_grace_s: float = 30.0
    """Time that a role gets for an orderly end before it is killed."""

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(f"launcher.device: expected auto, cpu, cuda or cuda:N, got {self.device!r}")
        require_at_least("launcher.actors_per_host", self.actors_per_host, 1)
        require_at_least("launcher.actors_per_pool", self.actors_per_pool, 1)
        for name in ("actor_cpus", "learner_cpus", "learner_gpus", "replay_cpus", "evaluator_cpus"):
            require_finite_at_least(f"launcher.{name}", getattr(self, name), 0)
        require_at_least("launcher.max_restarts", self.max_restarts, 0)
        require_positive("launcher.restart_window_s", self.restart_window_s)
        require_positive("launcher.stop_grace_s", self.stop_grace_s)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """All tables of a configuration file."""

    run: Annotated[RunConfig, Parameter(name="*")] = field(default_factory=RunConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)

    def to_toml(self) -> str:
        """The file that `--config` and every role read back; None is written as 'none'."""
        tables: dict[str, Any] = asdict(self.run)
        for name in ("learner", "actor", "evaluator", "launcher"):
            tables[name] = asdict(getattr(self, name))
        return tomli_w.dumps(_plain(tables))


_RUN_SETTINGS: dict[str, dict[str, Any]] = {
    "strong": {"num_offline_steps": 5_000, "replay": {"evict_seed": False}},
    "locomotion": {"num_offline_steps": 50_000},
    "behaviour-cloning": {"num_offline_steps": 10_000},
}
"""Settings of a run that a preset of the learner brings along."""


def preset_name(run: RunConfig) -> str:
    """The preset that a run uses.

    Raises:
        ConfigError: there is no preset of that name.
    """
    name = run.preset
    if name == "auto":
        return "strong" if find_task(run.env) else "locomotion"
    if name not in PRESETS:
        raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}.{nearest(name, PRESETS)}")
    return name


def preset_layer(name: str) -> dict[str, Any]:
    """A preset as the lowest configuration layer, below files, environment variables and options."""
    return {**_RUN_SETTINGS.get(name, {}), "learner": _plain(PRESETS[name])}


def resolve(config: ExperimentConfig, *, run_id: str, environment: EnvironmentConfig) -> ExperimentConfig:
    """Fill in what the user left open: the run's name, its preset and the environment's shape."""
    # Roles run in other folders than the user's: a dataset that is a path must be an absolute one.
    dataset = tuple(str(Path(source).resolve()) if Path(source).exists() else source for source in config.run.dataset)
    run = replace(
        config.run,
        dataset=dataset,
        run_id=config.run.run_id or run_id,
        preset=preset_name(config.run),
        environment=environment,
    )
    return replace(config, run=run)


def saved_experiment(path: Path) -> ExperimentConfig:
    """What a resume is compared with: the settings of a run and of its learner.

    Args:
        path: of the configuration file that the run was started with.

    Raises:
        ConfigError: it is missing or not TOML, or a value in it does not fit.
    """
    return ExperimentConfig(run=load_run_config(path), learner=load_role_config(path, "learner", LearnerConfig))


_FIXED = (
    "env", "dataset", "preset", "seed", "run_id", "environment", "rollout_length", "num_offline_steps", "utd_ratio",
    "lockstep",
)  # fmt: skip
"""Settings of a run that cannot change when it is resumed."""
_FIXED_IN_LOCKSTEP = ("actors", "num_env_steps", "initial_env_steps")
"""Settings that fix the turns."""


def refuse_changes(saved: ExperimentConfig, wanted: ExperimentConfig) -> None:
    """Refuse to resume a run as another one, or a learner as one that its checkpoints do not fit.

    Raises:
        ConfigError: names the settings that differ.
    """
    fixed = _FIXED + (_FIXED_IN_LOCKSTEP if saved.run.lockstep else ())
    pairs = [(name, getattr(saved.run, name), getattr(wanted.run, name)) for name in fixed]
    pairs += [
        (f"learner.{name}", getattr(saved.learner, name), getattr(wanted.learner, name)) for name in SHAPING_SETTINGS
    ]
    changed = [(name, before, now) for name, before, now in pairs if before != now]
    if changed:
        names = ", ".join(name for name, _, _ in changed)
        details = "; ".join(f"{name}: {before!r}, now {now!r}" for name, before, now in changed)
        raise ConfigError(f"a run that is resumed keeps its {names} ({details}): start a new run instead")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return NONE if value is None else value
