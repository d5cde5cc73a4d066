"""Following `launcher scale`: it asks through Redis, and waits until the number that it asked for stands there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from launcher.experiment import ExperimentConfig
from launcher.program import RoleProgram
from launcher.redis_link import RedisLink
from launcher.run_directory import RunDirectory
from launcher.scaling import ActorScaling
from launcher.supervisor import Supervisor
from replay_service.run_state import RunState


class ScaleRequests:
    """Gives a run that is up the number of actors that was asked for last.

    Args:
        config: resolved, of the run.
        directory: of the run; its configuration gets the new number, for a resume.
        programs: that were started.
        supervisor: which watches them.
        link: to the run's Redis.
        say: takes a line for the user.
        pool_size: number of actors -> most actors of a pool that begins now.
        reserve: whether a pool reserves CPUs.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        directory: RunDirectory,
        programs: Sequence[RoleProgram],
        supervisor: Supervisor,
        link: RedisLink,
        say: Callable[[str], None],
        *,
        pool_size: Callable[[int], int],
        reserve: bool,
    ) -> None:
        self._config = config
        self._directory = directory
        self._link = link
        self._say = say
        self._refused: int | None = None
        self._scaling = ActorScaling(
            config, directory, programs, supervisor, pool_size=pool_size, reserve=reserve, changed=self._adopt
        )

    def _adopt(self, config: ExperimentConfig) -> None:
        self._config = config

    def follow(self, state: RunState) -> None:
        """Do what is asked for in a reading of the run, and let Redis know what has been done."""
        wanted = state.actors_wanted
        if wanted != self._refused:
            self._refused = None
        if wanted not in (0, self._scaling.actors):
            self._scale(wanted)
        elif state.actors != self._scaling.actors:
            self._note()  # Redis could not take it at the time

    def _scale(self, wanted: int) -> None:
        before = self._scaling.actors
        asked = replace(self._config, run=replace(self._config.run, actors=wanted))
        try:
            self._directory.write_config(asked.to_toml())
        except OSError as error:
            if wanted != self._refused:
                self._say(
                    f"still {before} actors: {self._directory.config} cannot be written ({error.strerror}), and a "
                    f"resume would not know of {wanted}"
                )
            self._refused = wanted  # asked for until Redis, perhaps on the same disk, takes the number back
            self._link.try_to(lambda: self._link.state.request_actors(before))
            return
        self._say(f"from {before} to {wanted} actors ...")
        self._scaling.scale(wanted)
        self._note()
        self._say(f"{wanted} actors from now on")

    def _note(self) -> None:
        self._link.try_to(lambda: self._link.state.set_actors(self._config.run))
