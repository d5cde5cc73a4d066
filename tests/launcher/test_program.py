"""Which processes make up a run."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from launcher.experiment import ExperimentConfig, LauncherConfig
from launcher.program import make_program, split_actors
from launcher.run_directory import RunDirectory
from replay_service.config import RunConfig


@given(actors=st.integers(1, 2_000), per_host=st.integers(1, 128))
def test_actors_are_split_into_full_and_even_groups(actors: int, per_host: int) -> None:
    groups = split_actors(actors, per_host)
    assert [actor for group in groups for actor in group] == list(range(actors))
    sizes = [len(group) for group in groups]
    assert max(sizes) <= per_host
    assert max(sizes) - min(sizes) <= 1
    assert len(groups) == -(-actors // per_host)


def test_the_replay_service_starts_first_and_alone_needs_no_redis(tmp_path: Path) -> None:
    config = ExperimentConfig(run=RunConfig(env="pen", actors=5), launcher=LauncherConfig(actors_per_host=2))
    programs = make_program(config, RunDirectory(tmp_path), gpu=False)
    assert [p.name for p in programs] == ["replay", "learner", "actors-0", "actors-1", "actors-2", "evaluator"]
    assert [p.name for p in programs if not p.needs_redis] == ["replay"]
    assert [p.actor_ids for p in programs if p.actor_ids] == [(0, 1), (2,), (3, 4)]
    assert all(p.log_path.is_absolute() for p in programs)


def test_only_the_learner_reserves_a_gpu(tmp_path: Path) -> None:
    programs = make_program(ExperimentConfig(run=RunConfig(env="pen")), RunDirectory(tmp_path), gpu=True)
    assert {p.name: p.num_gpus for p in programs if p.num_gpus} == {"learner": 1.0}


def test_no_program_carries_a_secret_in_its_arguments(tmp_path: Path) -> None:
    config = ExperimentConfig(run=RunConfig(env="pen", redis_url="redis://me@host:1"))
    for program in make_program(config, RunDirectory(tmp_path), gpu=False):
        assert "redis" not in " ".join(program.arguments).replace(str(tmp_path), "")


def test_the_embedded_redis_listens_where_it_is_told(tmp_path: Path) -> None:
    config = ExperimentConfig(run=RunConfig(env="pen"))
    alone, *_ = make_program(config, RunDirectory(tmp_path), gpu=False)
    assert "--listen" not in alone.arguments
    replay, *others = make_program(config, RunDirectory(tmp_path), gpu=False, listen="10.0.0.1")
    assert replay.arguments[-2:] == ("--listen", "10.0.0.1")
    assert not any("10.0.0.1" in other.arguments for other in others)


def test_what_each_role_asks_for_is_a_setting(tmp_path: Path) -> None:
    settings = LauncherConfig(
        replay_cpus=2.0, learner_cpus=4.0, learner_gpus=0.5, actor_cpus=0.25, evaluator_cpus=3.0, actors_per_host=4
    )
    config = ExperimentConfig(run=RunConfig(env="pen", actors=4), launcher=settings)
    programs = {p.name: p for p in make_program(config, RunDirectory(tmp_path), gpu=True)}
    assert {name: p.num_cpus for name, p in programs.items()} == {
        "replay": 2.0, "learner": 4.0, "actors-0": 1.0, "evaluator": 3.0
    }  # fmt: skip
    assert programs["learner"].num_gpus == 0.5
