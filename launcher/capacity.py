"""Whether a cluster can hold a run's programs, and how large pools of actors may be on it: pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.experiment import LauncherConfig
from launcher.program import RoleProgram
from replay_service.access import Role

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Node:
    """A living node of the cluster, with all that it offers, used or not."""

    address: str
    num_cpus: float
    num_gpus: float = 0.0


def pool_size(actors: int, settings: LauncherConfig, nodes: Sequence[Node]) -> int:
    """Actors in one pool: on several nodes, or where more may join, no more than an even share, and than fit on the
    widest node.

    Args:
        actors: of the run.
        settings: how many the user allows, and the CPUs of one.
        nodes: of the cluster, at least one.
    """
    if len(nodes) == 1 and not settings.wait_for_nodes:
        return settings.actors_per_host
    even = math.ceil(actors / len(nodes))
    widest = max(node.num_cpus for node in nodes)
    fitting = int((widest + _ROUNDING) / settings.actor_cpus) if settings.actor_cpus else even
    return max(1, min(settings.actors_per_pool, even, fitting))


def unplaceable(programs: Sequence[RoleProgram], nodes: Sequence[Node]) -> list[RoleProgram]:
    """Programs for which an empty cluster of these nodes has no room, largest first; empty when all fit."""
    free = [(node.address, [node.num_cpus, node.num_gpus]) for node in nodes]
    left: list[RoleProgram] = []
    # Those that have no choice first.
    for program in sorted(programs, key=lambda p: (bool(p.node), p.num_gpus, p.num_cpus), reverse=True):
        rooms = [room for address, room in free if program.node in ("", address)]
        # Nodes without a GPU first: what needs none shall not take the place beside one.
        for room in sorted(rooms, key=lambda room: room[1]):
            if room[0] + _ROUNDING >= program.num_cpus and room[1] + _ROUNDING >= program.num_gpus:
                room[0] -= program.num_cpus
                room[1] -= program.num_gpus
                break
        else:
            left.append(program)
    return left


def refusal(programs: Sequence[RoleProgram], nodes: Sequence[Node]) -> str | None:
    """What to tell a user whose run the cluster cannot hold even when it is idle, or None when it can."""
    left = unplaceable(programs, nodes)
    if not left:
        return None
    addresses = {node.address for node in nodes}
    gone = [p for p in left if p.role is Role.LEARNER and p.node and p.node not in addresses]
    if gone:
        return (
            f"the checkpoints of this run are on {gone[0].node}, which is no node of the cluster now: start Ray there, "
            "wait for it with --launcher.wait-for-nodes, or copy its run directory's checkpoints/ into this one and go "
            "on here"
        )
    asked = _amount(sum(p.num_cpus for p in programs), sum(p.num_gpus for p in programs))
    there = ", ".join(f"{node.address} {_amount(node.num_cpus, node.num_gpus)}" for node in nodes)
    return (
        f"the cluster cannot hold this run: its {len(programs)} programs ask for {asked} in all, there are {there}. "
        f"No room for {describe(left)}. Ask for fewer --actors or a smaller --launcher.actor-cpus, add nodes, or start "
        "all the same with --launcher.wait-for-nodes"
    )


def describe(programs: Sequence[RoleProgram], shown: int = 4) -> str:
    """'learner (1 CPU, 1 GPU), actors-3 (8 CPUs) and 5 more'."""
    named = [f"{p.name} ({_amount(p.num_cpus, p.num_gpus)}{_where(p)})" for p in programs[:shown]]
    more = f" and {len(programs) - shown} more" if len(programs) > shown else ""
    return ", ".join(named) + more


def _where(program: RoleProgram) -> str:
    # That the replay service stays with the launcher is always so, and not worth a word.
    return f" on {program.node}" if program.node and program.role is not Role.REPLAY else ""


def _amount(num_cpus: float, num_gpus: float) -> str:
    cpus = f"{num_cpus:g} CPU{'' if num_cpus == 1 else 's'}"
    return f"{cpus}, {num_gpus:g} GPU{'' if num_gpus == 1 else 's'}" if num_gpus else cpus
