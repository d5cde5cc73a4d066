"""Where the programs of a run are asked to run, on clusters of all shapes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.capacity import Node
from launcher.experiment import ExperimentConfig, LauncherConfig
from launcher.learner_node import LearnerNode, NotedNode
from launcher.plan import Plan, make_plan
from launcher.program import RoleProgram
from launcher.run_directory import RunDirectory
from replay_service.access import Role
from replay_service.config import RunConfig
from replay_service.errors import ConfigError

HOME = "10.0.0.1"


def config(actors: int = 2, **settings: object) -> ExperimentConfig:
    launcher = replace(LauncherConfig(), **settings)  # type: ignore[arg-type]
    return ExperimentConfig(run=RunConfig(env="pen", actors=actors), launcher=launcher)


def plan(run: ExperimentConfig, folder: Path, *nodes: Node) -> Plan:
    return make_plan(run, RunDirectory(folder), nodes, HOME, listen="")


def learner_of(plan: Plan) -> RoleProgram:
    (learner,) = (program for program in plan.programs if program.role is Role.LEARNER)
    return learner


def add_checkpoint(folder: Path) -> None:
    time.sleep(0.02)  # file systems count in steps of a few milliseconds
    (folder / "checkpoints" / "step-000000000001").mkdir(parents=True)


def test_the_learner_is_wanted_beside_the_replay_service_where_all_fits_with_it_there(tmp_path: Path) -> None:
    wide = plan(config(), tmp_path, Node(HOME, 4.0), Node("b", 4.0))
    assert wide.beside
    assert learner_of(wide).node == ""
    # Two pools of actors fill the first node but for the replay service: the learner must go to the second.
    tight = plan(config(7), tmp_path, Node(HOME, 8.0), Node("b", 2.0))
    assert not tight.beside


def test_pools_are_cut_smaller_until_they_fit(tmp_path: Path) -> None:
    nodes = [Node(HOME, 1.0), Node("learner", 8.0), *(Node(f"actors-{i}", 8.0) for i in range(4))]
    made = plan(config(36), tmp_path, *nodes)
    assert sum(len(program.actor_ids) for program in made.programs) == 36
    with pytest.raises(ConfigError, match="cannot hold this run"):
        plan(config(45), tmp_path, *nodes)


def test_a_noted_learner_is_tied_to_its_node_with_the_gpu_it_had(tmp_path: Path) -> None:
    LearnerNode(RunDirectory(tmp_path)).note(NotedNode("b", 0.0))
    tied = plan(config(), tmp_path, Node(HOME, 4.0), Node("b", 4.0), Node("c", 4.0, 1.0))
    assert (learner_of(tied).node, learner_of(tied).num_gpus) == ("b", 0.0)
    assert not tied.beside
    with pytest.raises(ConfigError, match="the checkpoints of this run are on b"):
        plan(config(), tmp_path, Node(HOME, 8.0))
    LearnerNode(RunDirectory(tmp_path)).note(NotedNode("gone", 1.0))
    waiting = plan(config(wait_for_nodes=True), tmp_path, Node(HOME, 8.0))
    assert (learner_of(waiting).node, learner_of(waiting).num_gpus) == ("gone", 1.0)


def test_checkpoints_here_keep_a_learner_here_if_it_fits(tmp_path: Path) -> None:
    LearnerNode(RunDirectory(tmp_path)).note(NotedNode("b", 0.0))
    add_checkpoint(tmp_path)
    assert learner_of(plan(config(), tmp_path, Node(HOME, 8.0), Node("b", 8.0))).node == HOME
    # With a GPU elsewhere it goes there, on a shared disk for good, else to be told how to stay: --device cpu.
    assert learner_of(plan(config(), tmp_path, Node(HOME, 8.0), Node("c", 8.0, 1.0))).node == ""
    assert learner_of(plan(config(device="cpu"), tmp_path, Node(HOME, 8.0), Node("c", 8.0, 1.0))).node == HOME
