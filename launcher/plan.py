"""Which programs a run has on these nodes, and where those of them must run that have no choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.capacity import Node, pool_size, refusal, unplaceable
from launcher.experiment import ExperimentConfig
from launcher.learner_node import LearnerNode, NotedNode
from launcher.program import RoleProgram, make_program
from launcher.run_directory import RunDirectory
from replay_service.access import Role
from replay_service.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of the cluster."""

    programs: list[RoleProgram]
    beside: bool
    """Whether the learner is asked for on the launcher's node first: where all fits with it there."""


def make_plan(
    config: ExperimentConfig, directory: RunDirectory, nodes: Sequence[Node], home: str, *, listen: str
) -> Plan:
    """The programs of a run, cut for these nodes.

    Args:
        config: resolved.
        directory: of the run.
        nodes: living ones, at least one.
        home: address of the launcher's.
        listen: address for the embedded Redis; '' leaves it on the loopback interface.

    Raises:
        ConfigError: the nodes cannot hold them, and nobody said to wait for more.
    """
    checkpoints = LearnerNode(directory)
    noted = checkpoints.read()
    gpu = _takes_gpu(config, nodes, noted)
    largest = pool_size(config.run.actors, config.launcher, nodes)

    def cut(size: int) -> list[RoleProgram]:
        whole = make_program(config, directory, gpu=gpu, pool_size=size, listen=listen)
        tied = _tied(whole, nodes, home, noted, has_checkpoints_here=checkpoints.has_checkpoints_here)
        return [replace(program, node=tied.get(program.role, "")) for program in whole]

    # Smaller pools may fill gaps that larger ones leave.
    sizes = (size for size in range(largest, 0, -1) if not unplaceable(cut(size), nodes))
    programs = cut(next(sizes, largest))
    if not config.launcher.wait_for_nodes and (problem := refusal(programs, nodes)) is not None:
        raise ConfigError(problem)
    return Plan(programs, beside=_fits_beside(programs, nodes, home))


def _takes_gpu(config: ExperimentConfig, nodes: Sequence[Node], noted: NotedNode | None) -> bool:
    settings = config.launcher
    if settings.device == "cpu":
        return False
    candidates = [node for node in nodes if noted is None or node.address == noted.address]
    if noted is not None and not candidates:
        return noted.num_gpus > 0  # its node is away, and will be as it was
    return any(node.num_gpus >= settings.learner_gpus > 0 for node in candidates)


def _tied(
    programs: list[RoleProgram], nodes: Sequence[Node], home: str, noted: NotedNode | None, *,
    has_checkpoints_here: bool,
) -> dict[Role, str]:  # fmt: skip
    if noted is not None:
        return {Role.REPLAY: home, Role.LEARNER: noted.address}
    # Checkpoints that this machine can read may be on a shared disk: they hold a learner back only if it fits here.
    stays = has_checkpoints_here and _core_fits(programs, nodes, home)
    return {Role.REPLAY: home, **({Role.LEARNER: home} if stays else {})}


def _core_fits(programs: list[RoleProgram], nodes: Sequence[Node], home: str) -> bool:
    core = [program for program in programs if program.role in (Role.REPLAY, Role.LEARNER)]
    return not unplaceable(core, [node for node in nodes if node.address == home])


def _fits_beside(programs: list[RoleProgram], nodes: Sequence[Node], home: str) -> bool:
    if any(program.role is Role.LEARNER and program.node for program in programs):
        return False
    if unplaceable(programs, nodes):  # it waits for nodes that will join
        return _core_fits(programs, nodes, home)
    return not unplaceable([replace(p, node=home) if p.role is Role.LEARNER else p for p in programs], nodes)
