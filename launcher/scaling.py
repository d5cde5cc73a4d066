"""More or fewer actors while a run is up."""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.experiment import ExperimentConfig
from launcher.program import RoleProgram, make_pool, split_actors
from launcher.run_directory import RunDirectory
from launcher.supervisor import Supervisor

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """What leads from the pools of actors that there are to those that there shall be."""

    stop: tuple[str, ...]
    """Pools that end, by name."""
    start: tuple[tuple[str, tuple[int, ...]], ...]
    """Pools that begin: name, actor indices."""


def plan_change(pools: Mapping[str, Sequence[int]], wanted: int, *, pool_size: int) -> Change:
    """Keep the actors 0 .. wanted - 1, with as few pools ended as can be.

    Args:
        pools: name -> indices of its actors.
        wanted: actors, at least 1.
        pool_size: most actors of a new pool.
    """
    stop = tuple(name for name, ids in pools.items() if max(ids) >= wanted)
    kept = {actor_id for name, ids in pools.items() if name not in stop for actor_id in ids}
    taken = pools.keys() - set(stop)
    free = (name for number in itertools.count() if (name := f"actors-{number}") not in taken)
    missing = [actor_id for actor_id in range(wanted) if actor_id not in kept]
    groups = split_actors(len(missing), pool_size) if missing else []
    start = tuple((next(free), tuple(missing[place] for place in places)) for places in groups)
    return Change(stop, start)


class ActorScaling:
    """Changes the number of actors of a run that is up.

    Args:
        config: resolved, of the run.
        directory: of the run.
        programs: that were started.
        supervisor: which watches them.
        pool_size: number of actors -> most actors of a pool that begins now.
        reserve: whether a pool reserves CPUs; on a private Ray of one machine only the first ones do.
        changed: called with the configuration of the new number, to be kept.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        directory: RunDirectory,
        programs: Sequence[RoleProgram],
        supervisor: Supervisor,
        *,
        pool_size: Callable[[int], int],
        reserve: bool,
        changed: Callable[[ExperimentConfig], None],
    ) -> None:
        self._config = config
        self._directory = directory
        self._pools = {program.name: program.actor_ids for program in programs if program.actor_ids}
        self._supervisor = supervisor
        self._pool_size = pool_size
        self._reserve = reserve
        self._changed = changed

    @property
    def actors(self) -> int:
        """Actors that the run has places for."""
        return self._config.run.actors

    def scale(self, wanted: int) -> None:
        """End and begin pools. Actors that leave send what they have and give their leases back."""
        change = plan_change(self._pools, wanted, pool_size=self._pool_size(wanted))
        _log.info("from %d to %d actors: ends %s, begins %s", self.actors, wanted, change.stop, change.start)
        self._config = replace(self._config, run=replace(self._config.run, actors=wanted))
        # First what survives a crash of this process: a resume then goes on with the new number.
        self._changed(self._config)
        for name, code in self._supervisor.stop(list(change.stop), self._config.launcher.stop_grace_s).items():
            del self._pools[name]
            if code not in (0, None, -signal.SIGTERM):  # the last one: it was still starting
                _log.warning("%s ended with code %s", name, code)
        for name, ids in change.start:
            program = make_pool(self._config, self._directory, name, ids)
            self._pools[name] = ids
            self._supervisor.start(program if self._reserve else replace(program, num_cpus=0.0))
