"""Deliver trajectories exactly once: keep each until the service has surely got it, and send again what it lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from replay_service.experience import Trajectory
from replay_service.trajectory_stream import Admission, EpisodeOutcome, TrajectoryWriter

_LONGEST_MEMORY_MESSAGES = 256


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A message that was acknowledged."""

    trajectory: Trajectory
    outcome: EpisodeOutcome | None
    acknowledged_at: float


class LostMessages(Exception):
    """The service asks for messages that are no longer kept; a new epoch must be opened."""


class Outbox:
    """The sending side of one actor.

    One message is in flight at a time. It is sent until the service answers; the caller decides between two tries
    whether to go on. Acknowledged messages stay for `resend_window_s`, because a Redis that dies may lose the last
    second of its append-only file: it then answers 'gap', and they are sent again in order.
    """

    def __init__(
        self, writer: TrajectoryWriter, *, resend_window_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._writer = writer
        self._resend_window_s = resend_window_s
        self._clock = clock
        self._sent: deque[Sent] = deque(maxlen=_LONGEST_MEMORY_MESSAGES)
        self._next_sequence = 0
        self.resent_messages = 0

    def request(self, want_steps: int) -> Admission:
        """Ask for steps, after sending whatever the service has lost: it has the lease of those steps again.

        Raises:
            LostMessages: the service lost messages that are older than the window.
            redis.exceptions.RedisError: no answer came; call again.
        """
        admission = self._writer.request(want_steps, next_sequence=self._next_sequence)
        while admission.resend_from is not None:
            self._resend(admission.resend_from, before=self._next_sequence)
            admission = self._writer.request(want_steps, next_sequence=self._next_sequence)
        return admission

    def deliver(self, trajectory: Trajectory, outcome: EpisodeOutcome | None, *, want_steps: int) -> Admission:
        """Send one trajectory, after whatever the service has lost.

        Raises:
            LostMessages: the service lost messages that are older than the window.
            redis.exceptions.RedisError: no answer came; call again with the same trajectory.
        """
        admission = self._writer.append(trajectory, want_steps=want_steps, outcome=outcome)
        while admission.resend_from is not None:
            self._resend(admission.resend_from, before=trajectory.origin.sequence)
            admission = self._writer.append(trajectory, want_steps=want_steps, outcome=outcome)
        now = self._clock()
        self._sent.append(Sent(trajectory, outcome, now))
        self._next_sequence = trajectory.origin.sequence + 1
        while self._sent and now - self._sent[0].acknowledged_at > self._resend_window_s:
            self._sent.popleft()
        return admission

    @property
    def kept(self) -> tuple[Sent, ...]:
        """What was acknowledged last, oldest first."""
        return tuple(self._sent)

    def _resend(self, first: int, *, before: int) -> None:
        lost = [sent for sent in self._sent if first <= sent.trajectory.origin.sequence < before]
        if not lost or lost[0].trajectory.origin.sequence != first or len(lost) != before - first:
            self._sent = deque(lost, maxlen=_LONGEST_MEMORY_MESSAGES)  # what came before is still there
            raise LostMessages(f"the service asks for messages {first} to {before - 1}; kept are {len(lost)} of them")
        for sent in lost:
            self._writer.append(sent.trajectory, want_steps=0, outcome=sent.outcome)
            self.resent_messages += 1
        now = self._clock()  # they are in the last, unsynced second once more, and are kept for as long
        for index, sent in enumerate(self._sent):
            if sent.trajectory.origin.sequence >= first:
                self._sent[index] = replace(sent, acknowledged_at=now)
