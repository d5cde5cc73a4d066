"""`launcher scale` as the launcher follows it, with a real Redis and real processes for the pools."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.experiment import ExperimentConfig
from launcher.program import RoleProgram
from launcher.redis_link import RedisLink
from launcher.run_directory import RunDirectory
from launcher.scale_requests import ScaleRequests
from launcher.supervisor import Supervisor
from replay_service.config import RunConfig
from replay_service.config_file import load_run_config
from replay_service.connection import RedisEndpoint
from replay_service.redis_client import RedisClient
from replay_service.run_state import RunState, RunStateStore
from tests.faults import no_memory
from tests.launcher.test_supervisor import FOREVER, LocalPlacement


class Pools(LocalPlacement):
    """Has a process that only waits in the place of each pool."""

    def start(self, program: RoleProgram, environment: dict[str, str]) -> int:
        return super().start(replace(program, arguments=("-c", FOREVER)), environment)


class Scaled:
    """A run of which nothing but its pools and its Redis is up."""

    def __init__(self, placement: Pools, folder: Path, endpoint: RedisEndpoint, run: RunConfig, state: RunStateStore
                 ) -> None:  # fmt: skip
        self.directory, self.state, self.said = RunDirectory(folder), state, list[str]()
        self.directory.logs.mkdir()
        config = ExperimentConfig(run=run)
        self.directory.write_config(config.to_toml())
        supervisor = Supervisor(
            placement, environment=lambda _p: {}, max_restarts=1, restart_window_s=60.0, on_restart=lambda _n: None
        )
        ids = tuple(range(run.actors))
        pool = RoleProgram("actors-0", (), self.directory.logs / "actors-0.log", num_cpus=1.0, actor_ids=ids)
        supervisor.start(pool)
        self.pools = supervisor
        link = RedisLink(endpoint, run)
        assert link.open()
        self.requests = ScaleRequests(
            config, self.directory, [pool], supervisor, link, self.said.append, pool_size=lambda n: n, reserve=False
        )

    def follow(self) -> RunState:
        """One look of the launcher; returns what then stands in Redis."""
        self.requests.follow(self.state.read())
        return self.state.read()


@pytest.fixture
def scaled(tmp_path: Path, redis_endpoint: RedisEndpoint, run_config: RunConfig, state: RunStateStore
           ) -> Iterator[Scaled]:  # fmt: skip
    placement = Pools()
    yield Scaled(placement, tmp_path, redis_endpoint, run_config, state)
    for process in placement.processes.values():
        process.kill()
        process.wait()


def test_the_number_that_was_asked_for_comes_and_is_kept_for_a_resume(scaled: Scaled) -> None:
    assert scaled.follow().actors == 2
    assert scaled.said == []
    scaled.state.request_actors(5)
    assert scaled.follow().actors == 5
    assert scaled.pools.names == ["actors-0", "actors-1"]
    assert load_run_config(scaled.directory.config).actors == 5
    assert scaled.said == ["from 2 to 5 actors ...", "5 actors from now on"]


def test_what_redis_could_not_take_is_written_again(scaled: Scaled, redis_client: RedisClient) -> None:
    scaled.state.request_actors(3)
    seen = scaled.state.read()
    with no_memory(redis_client):  # just after the launcher looked
        scaled.requests.follow(seen)
    assert scaled.state.read().actors == 2
    assert scaled.follow().actors == 3
    assert scaled.pools.names == ["actors-0", "actors-1"]  # and the actors came once


def test_a_configuration_that_cannot_be_written_keeps_the_number_and_ends_nothing(scaled: Scaled) -> None:
    obstacle = scaled.directory.config.with_suffix(".partial")
    obstacle.mkdir()
    scaled.state.request_actors(3)
    after = scaled.follow()
    assert (after.actors, after.actors_wanted) == (2, 2)
    assert scaled.pools.names == ["actors-0"]
    scaled.state.request_actors(3)  # as it stays where Redis, on the same disk, cannot take the number back
    scaled.follow()
    (said,) = scaled.said
    assert said.startswith(f"still 2 actors: {scaled.directory.config} cannot be written (")
    shutil.rmtree(obstacle)
    scaled.state.request_actors(3)
    assert scaled.follow().actors == 3
