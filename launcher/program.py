"""Which processes make up a run: pure data, printable, without Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.experiment import ExperimentConfig
from launcher.run_directory import RunDirectory
from replay_service.access import Role


@dataclass(frozen=True, slots=True)
class RoleProgram:
    """One process to place and supervise."""

    name: str
    """Unique in the run: replay, learner, evaluator, actors-0, ..."""
    arguments: tuple[str, ...]
    """After the Python interpreter: `-m learner --config ...`."""
    log_path: Path
    num_cpus: float
    """CPUs that Ray reserves for it."""
    num_gpus: float = 0.0
    role: Role = Role.ACTOR
    """Whose credential for Redis it gets; the one with the fewest rights unless another is named."""
    actor_ids: tuple[int, ...] = ()
    node: str = ""
    """Address of the only node that it may run on; '': any."""

    @property
    def needs_redis(self) -> bool:
        """Whether it gets the run's Redis endpoint in its environment: all but the one that starts Redis."""
        return self.role is not Role.REPLAY


def split_actors(actors: int, per_host: int) -> list[tuple[int, ...]]:
    """Indices 0 .. actors - 1 in contiguous groups of nearly equal size, none above `per_host`."""
    groups = -(-actors // per_host)
    bounds = [round(i * actors / groups) for i in range(groups + 1)]
    return [tuple(range(bounds[i], bounds[i + 1])) for i in range(groups)]


def make_program(
    config: ExperimentConfig, run: RunDirectory, *, gpu: bool, pool_size: int = 0, listen: str = ""
) -> list[RoleProgram]:
    """All roles of a run in the order in which they start.

    Args:
        config: resolved.
        run: its directory; all paths are made absolute, because Ray's workers have another working folder.
        gpu: whether the learner reserves a GPU.
        pool_size: most actors of a pool; 0: `launcher.actors_per_host`.
        listen: address for the embedded Redis; '' leaves it on the loopback interface.
    """
    root = RunDirectory(run.path.resolve())
    common = ("--config", str(root.config))

    def log(name: str) -> Path:
        return root.logs / f"{name}.log"

    learner = ("-m", "learner", *common, "--checkpoint-dir", str(root.checkpoints), "--device", config.launcher.device)
    replay = ("-m", "replay_service", *common, "--run-dir", str(root.path), *(("--listen", listen) if listen else ()))
    asked = config.launcher
    roles = [
        RoleProgram("replay", replay, log("replay"), num_cpus=asked.replay_cpus, role=Role.REPLAY),
        RoleProgram(
            "learner",
            learner,
            log("learner"),
            num_cpus=asked.learner_cpus,
            num_gpus=asked.learner_gpus if gpu else 0.0,
            role=Role.LEARNER,
        ),
    ]
    groups = split_actors(config.run.actors, pool_size or asked.actors_per_host)
    roles += [make_pool(config, run, f"actors-{index}", ids) for index, ids in enumerate(groups)]
    evaluator = ("-m", "actors", "evaluator", *common)
    roles.append(
        RoleProgram("evaluator", evaluator, log("evaluator"), num_cpus=asked.evaluator_cpus, role=Role.EVALUATOR)
    )
    return roles


def make_pool(config: ExperimentConfig, run: RunDirectory, name: str, ids: tuple[int, ...]) -> RoleProgram:
    """A pool of actors: one process that forks one for each.

    Args:
        config: resolved.
        run: its directory.
        name: unique in the run.
        ids: indices of its actors, without gaps.
    """
    root = RunDirectory(run.path.resolve())
    arguments = (
        "-m", "actors", "actor", "--config", str(root.config), "--indices", f"{ids[0]}-{ids[-1]}",
        "--log-dir", str(root.logs),
    )  # fmt: skip
    num_cpus = config.launcher.actor_cpus * len(ids)
    return RoleProgram(name, arguments, root.logs / f"{name}.log", num_cpus=num_cpus, actor_ids=ids)
