"""The launcher's own line to the Redis of its run: outages are waited out, and none of its errors hinders an end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import redis

from launcher.snapshot import Snapshot, SnapshotReader
from replay_service.config import RunConfig
from replay_service.connection import FAREWELL_ERRORS, RedisEndpoint, connect
from replay_service.errors import AwacError
from replay_service.keys import Keys
from replay_service.outage import outage_of
from replay_service.process_identity import ProcessIdentity
from replay_service.run_state import RunStateStore

_REPLY_TIMEOUT_S = 5.0
_LEARNER = "learner"
_UNSAID: tuple[type[Exception], ...] = (*FAREWELL_ERRORS, AwacError)

AnswerT = TypeVar("AnswerT")

_log = logging.getLogger(__name__)


class RedisLink:
    """What the launcher reads there and writes there.

    Args:
        endpoint: where the run's Redis is.
        run: the run.
    """

    def __init__(self, endpoint: RedisEndpoint, run: RunConfig) -> None:
        client, keys = connect(endpoint, reply_timeout_s=_REPLY_TIMEOUT_S), Keys(run.run_id)
        self.endpoint = endpoint
        self.state = RunStateStore(client, keys)
        self.last: Snapshot | None = None
        """The newest reading."""
        self._run = run
        self._reader = SnapshotReader(client, keys)
        self._learner_before: ProcessIdentity | None = None
        self._complaint = ""

    def open(self) -> bool:
        """Begin a session: to be called before its learner is started, until it returns True.

        Returns:
            Whether Redis has taken how many actors the run has.
        """

        def note() -> bool:
            self._learner_before = self.state.processes().get(_LEARNER)
            self.state.open_places(self._run)
            return True

        return self._ask(note) is not None

    def read(self) -> Snapshot | None:
        """A reading of the run, or None in an outage.

        Raises:
            UserError: the run's state is damaged, or gone.
            redis.exceptions.RedisError: an error that no waiting mends.
        """
        found = self._ask(self._reader.read)
        self.last = found or self.last
        return found

    def learner_has_registered(self) -> bool:
        """Whether the learner of this session has accepted its settings, and not the one before it alone."""
        return (self._ask(self.state.processes) or {}).get(_LEARNER) not in (None, self._learner_before)

    def try_to(self, act: Callable[[], object]) -> bool:
        """Do what is not worth failing for; returns whether it was done. Why not is in the log."""
        try:
            act()
        except _UNSAID as error:
            self._complain(error)
            return False
        self._complaint = ""
        return True

    def _ask(self, ask: Callable[[], AnswerT]) -> AnswerT | None:
        try:
            answer = ask()
        except redis.exceptions.RedisError as error:
            if outage_of(error) is None:
                raise
            self._complain(error)
            return None
        self._complaint = ""
        return answer

    def _complain(self, error: Exception) -> None:
        if str(error) != self._complaint:  # what is tried twice a second is told once
            self._complaint = str(error)
            _log.warning("Redis: %s", error)
