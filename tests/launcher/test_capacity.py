"""Whether a cluster can hold a run, and how actors are cut into pools for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.capacity import Node, pool_size, refusal, unplaceable
from launcher.experiment import ExperimentConfig, LauncherConfig
from launcher.program import RoleProgram, make_program
from launcher.run_directory import RunDirectory
from replay_service.access import Role
from replay_service.config import RunConfig


def program(name: str, cpus: float, gpus: float = 0.0) -> RoleProgram:
    return RoleProgram(name, (), Path("log"), num_cpus=cpus, num_gpus=gpus)


def programs_of(actors: int, nodes: list[Node], **settings: float) -> list[RoleProgram]:
    config = ExperimentConfig(run=RunConfig(env="pen", actors=actors), launcher=LauncherConfig(**settings))  # type: ignore[arg-type]
    chosen = config.launcher
    size = pool_size(actors, chosen, nodes)
    return make_program(config, RunDirectory(Path("run")), gpu=any(n.num_gpus for n in nodes), pool_size=size)


def test_one_node_keeps_large_pools() -> None:
    assert pool_size(32, LauncherConfig(), [Node("a", 4.0)]) == 64


@pytest.mark.parametrize(
    ("actors", "cpus", "actor_cpus", "expected"),
    [
        (4, [2, 2, 2], 1.0, 2),  # an even share
        (512, [64] * 20, 1.0, 8),  # a few
        (512, [6] * 100, 1.0, 6),  # what the widest node has room for
        (512, [6] * 100, 0.25, 6),
        (512, [64] * 20, 0.0, 8),  # nothing is reserved
        (100, [1, 1], 4.0, 1),  # fits nowhere: `refusal` says so
    ],
)
def test_pools_for_several_nodes(actors: int, cpus: list[float], actor_cpus: float, expected: int) -> None:
    nodes = [Node(f"n{i}", float(c)) for i, c in enumerate(cpus)]
    assert pool_size(actors, LauncherConfig(actor_cpus=actor_cpus), nodes) == expected


def test_larger_pools_are_a_setting() -> None:
    nodes = [Node(f"n{i}", 64.0) for i in range(4)]
    assert pool_size(512, LauncherConfig(actors_per_pool=32), nodes) == 32


def test_the_learner_takes_the_gpu_and_others_stay_away_from_it() -> None:
    nodes = [Node("cpu", 2.0), Node("gpu", 2.0, 1.0)]
    assert unplaceable([program("learner", 1.0, 1.0), program("a", 2.0), program("b", 1.0)], nodes) == []
    assert [p.name for p in unplaceable([program("learner", 1.0, 2.0)], nodes)] == ["learner"]


def test_a_run_that_fits_is_not_refused_and_one_that_does_not_is_told_what_was_asked_and_what_there_is() -> None:
    nodes = [Node("10.0.0.1", 2.0), Node("10.0.0.2", 2.0), Node("10.0.0.3", 2.0)]
    assert refusal(programs_of(4, nodes), nodes) is None
    text = refusal(programs_of(5, nodes), nodes)
    assert text is not None
    assert "ask for 7 CPUs in all" in text
    assert "10.0.0.2 2 CPUs" in text
    assert "--launcher.wait-for-nodes" in text
    assert refusal(programs_of(5, nodes, actor_cpus=0.5), nodes) is None


@given(
    cpus=st.lists(st.integers(1, 64), min_size=1, max_size=12),
    asked=st.lists(st.integers(1, 16), min_size=1, max_size=30),
)
def test_what_is_placed_fits(cpus: list[int], asked: list[int]) -> None:
    nodes = [Node(str(i), float(c)) for i, c in enumerate(cpus)]
    programs = [program(str(i), float(a)) for i, a in enumerate(asked)]
    left = unplaceable(programs, nodes)
    placed = sum(p.num_cpus for p in programs) - sum(p.num_cpus for p in left)
    assert placed <= sum(cpus)
    if sum(asked) > sum(cpus) or max(asked) > max(cpus):
        assert left


def test_a_program_that_is_tied_to_a_node_fits_there_alone() -> None:
    nodes = [Node("10.0.0.1", 4.0), Node("10.0.0.2", 1.0)]
    tied = RoleProgram("learner", (), Path("log"), num_cpus=2.0, role=Role.LEARNER, node="10.0.0.2")
    assert unplaceable([tied], nodes) == [tied]
    assert unplaceable([replace(tied, num_cpus=1.0), program("a", 4.0)], nodes) == []
    text = refusal([tied], nodes)
    assert text is not None
    assert "learner (2 CPUs on 10.0.0.2)" in text


def test_a_learner_whose_node_has_left_is_told_where_its_checkpoints_are() -> None:
    learner = RoleProgram("learner", (), Path("log"), num_cpus=1.0, role=Role.LEARNER, node="10.0.0.9")
    text = refusal([learner], [Node("10.0.0.1", 4.0)])
    assert text is not None
    assert "the checkpoints of this run are on 10.0.0.9" in text
    assert "--launcher.wait-for-nodes" in text
