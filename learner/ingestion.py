"""How trajectories come from Redis into the replay mirror: the seed, then the stream."""

from __future__ import annotations

import logging

from learner.checkpoint import Progress
from learner.config import LearnerConfig
from learner.metrics import LearnerMetrics
from learner.mirror import ReplayMirror, Transitions, n_step_transitions
from learner.turn_taking import TurnTaking, refuse_missing_steps
from replay_service.config import RunConfig
from replay_service.errors import DatasetError
from replay_service.experience import Trajectory
from replay_service.patience import Patience
from replay_service.trajectory_stream import BadEntry, Quarantine, TrajectoryReader

_ENTRIES_A_READ = 64

_log = logging.getLogger(__name__)


class Ingestion:
    """Reads on where it stopped, puts aside what is damaged, and stores the rest.

    Args:
        run: the run's settings.
        config: how trajectories become transitions.
        mirror: is filled.
        online: reads the stream of the actors.
        quarantine: where damaged entries go.
        patience: waits for a Redis that is away.
        metrics: count the steps.
    """

    def __init__(
        self,
        run: RunConfig,
        config: LearnerConfig,
        mirror: ReplayMirror,
        *,
        online: TrajectoryReader,
        quarantine: Quarantine,
        patience: Patience,
        metrics: LearnerMetrics,
    ) -> None:
        self._config = config
        self._mirror = mirror
        self._online = online
        self._quarantine = quarantine
        self._patience = patience
        self._metrics = metrics
        self._seeding: str | None = None
        """What the ids of all entries of one seeding begin with."""
        self.turns = TurnTaking(run, self._insert_online) if run.lockstep else None
        """What arrives waits here for its turn, in lockstep."""

    def read_seed(self, seed: TrajectoryReader) -> int:
        """Take in the next entries of the seed.

        Returns:
            Transitions of them; 0 at the end, and -1 where the stream was begun anew behind what was read.

        Raises:
            DatasetError: an entry does not fit the run.
        """
        steps = 0
        for entry in seed.read(count=_ENTRIES_A_READ):
            if self._seeding not in (None, seeding := entry.entry_id.partition("-")[0]):
                return -1
            self._seeding = seeding
            if isinstance(entry, BadEntry):
                raise DatasetError(f"seed entry {entry.entry_id} does not fit the run: {entry.reason}")
            self._mirror.insert_seed(self._transitions(entry.trajectory))
            steps += entry.trajectory.num_steps
        return steps

    def read_online(self, progress: Progress, *, block_ms: int | None) -> int:
        """Take in the next entries of the stream, of which there may be more.

        Args:
            progress: its `stream_position` follows.
            block_ms: how long to wait for the first of them; None does not.

        Returns:
            Number of entries read, the damaged ones included.
        """
        return self._read(progress, block_ms)[0]

    def read_online_to_its_end(self, progress: Progress) -> int:
        """Take in all that the stream holds by now.

        Args:
            progress: its `stream_position` follows.

        Returns:
            Environment steps that were put aside on the way.

        Raises:
            LockstepBroken: there are any, and the run is in lock-step.
        """
        put_aside, read = 0, _ENTRIES_A_READ
        while read == _ENTRIES_A_READ:
            read, steps = self._read(progress, None)
            put_aside += steps
        return put_aside

    def _read(self, progress: Progress, block_ms: int | None) -> tuple[int, int]:
        """Returns (entries read, steps put aside)."""
        read = put_aside = 0
        for entry in self._online.read(count=_ENTRIES_A_READ, block_ms=block_ms):
            read += 1
            if isinstance(entry, BadEntry):
                put_aside += self._put_aside(entry)
                continue
            trajectory = entry.trajectory
            progress.stream_position = entry.first_step + trajectory.num_steps
            if self.turns is not None:
                self.turns.add(trajectory)
            else:
                self._insert_online(trajectory, entry.first_step)
            self._metrics.ingested_steps.inc(trajectory.num_steps)
        return read, put_aside

    def _put_aside(self, bad: BadEntry) -> int:
        # Patience of its own: the reader has moved past the entry and would not bring it again.
        steps = self._patience.until_answered(lambda: self._quarantine.put(bad)) or 0
        _log.warning("quarantined %s (%d steps): %s", bad.entry_id, steps, bad.reason)
        if self.turns is not None:
            refuse_missing_steps(steps, why=bad.reason)
        return steps

    def _insert_online(self, trajectory: Trajectory, first_step: int) -> None:
        self._mirror.insert_online(self._transitions(trajectory), first_step=first_step)

    def _transitions(self, trajectory: Trajectory) -> Transitions:
        transitions = n_step_transitions(
            trajectory,
            n_step=self._config.n_step,
            discount=self._config.discount,
            use_terminals=self._config.use_terminals,
        )
        if self._config.clip_stored_actions:
            transitions = transitions._replace(actions=transitions.actions.clip(-1.0, 1.0))
        return transitions
