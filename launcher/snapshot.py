"""One reading of a run for displays, and rates over time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.reports import ActorLedger, Evaluation, LearnerReport, Reports, is_heard_of, staying
from replay_service.run_state import Phase, RunState, RunStateStore
from replay_service.weights_channel import PublicationTimes

_REPORT_HISTORY = 150
"""Newest reports of the learner that displays look at: five minutes at the usual period of 2 s."""


@dataclass(frozen=True, slots=True)
class RedisMemory:
    """What Redis holds, and what it may hold."""

    used_bytes: int
    limit_bytes: int
    """0: no limit."""

    @property
    def ratio(self) -> float | None:
        """Share of the limit in use, or None without a limit."""
        return self.used_bytes / self.limit_bytes if self.limit_bytes else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a display shows."""

    state: RunState
    report: LearnerReport | None
    actors: list[ActorLedger]
    evaluations: list[Evaluation]
    unix_seconds: float
    reports: tuple[LearnerReport, ...] = ()
    """The newest reports of the learner, oldest first."""
    publications: dict[int, float] = field(default_factory=dict)
    """Policy version -> Unix seconds of its publication, for the newest versions."""
    memory: RedisMemory | None = None

    def is_alive(self, actor: ActorLedger) -> bool:
        """Whether the replay service heard of an actor within the last 15 s."""
        return is_heard_of(actor, unix_seconds=self.unix_seconds)

    @property
    def staying(self) -> list[ActorLedger]:
        """Actors of the run but those that `launcher scale` sent away."""
        return staying(self.actors, self.state, unix_seconds=self.unix_seconds)

    def weight_age_s(self, version: int) -> float | None:
        """Seconds since a version was published; None when that is not known (any more)."""
        published = self.publications.get(version)
        return None if published is None else max(0.0, self.unix_seconds - published)

    @property
    def actors_alive(self) -> int:
        """Actors that the replay service heard of within the last 15 s."""
        return sum(self.is_alive(actor) for actor in self.actors)

    def progress(self) -> tuple[float, str]:
        """Share of the current phase that is done, and that phase in words."""
        state = self.state
        if state.phase is Phase.SEEDING:
            return 0.0, "seeding the buffer"
        if state.phase is Phase.PRETRAINING:
            done, total = state.grad_steps, max(1, state.num_offline_steps)
            return min(1.0, done / total), f"pretraining offline, {done:,} of {total:,} gradient steps"
        if state.phase is Phase.ONLINE:
            done, total = state.env_steps, max(1, state.num_env_steps)
            return min(1.0, done / total), f"fine-tuning online, {done:,} of {total:,} env steps"
        waiting = state.evaluations_waiting
        return 1.0, f"finished, {waiting} evaluations to come" if waiting > 0 else "finished"


class SnapshotReader:
    """Takes snapshots of one run."""

    def __init__(self, client: RedisClient, keys: Keys) -> None:
        self._client = client
        self._state = RunStateStore(client, keys)
        self._reports = Reports(client, keys)
        # By policy version: a Redis that was killed may forget the newest, which is then recorded and read once more.
        self._evaluations: dict[int, Evaluation] = {}
        self._cursor = "0-0"
        self._publications = PublicationTimes(client, keys)
        self._learner_reports: deque[LearnerReport] = deque(maxlen=_REPORT_HISTORY)
        self._report_cursor = ""

    def read(self) -> Snapshot:
        """One reading."""
        for cursor, evaluation in self._reports.evaluations(self._cursor):
            self._cursor = cursor
            self._evaluations[evaluation.policy_version] = evaluation
        self._state.read()  # refuses when Redis holds no such run
        state, actors = self._reports.state_and_actors()
        self._read_learner_reports()
        memory = self._client.info("memory")
        return Snapshot(
            state=state,
            report=self._learner_reports[-1] if self._learner_reports else None,
            actors=actors,
            evaluations=list(self._evaluations.values()),
            unix_seconds=time.time(),
            reports=tuple(self._learner_reports),
            publications=self._publications.read(),
            memory=RedisMemory(int(memory["used_memory"]), int(memory.get("maxmemory", 0))),
        )

    def _read_learner_reports(self) -> None:
        if self._report_cursor:
            found = list(self._reports.learner_reports(self._report_cursor))
        else:
            found = self._reports.recent_learner_reports(_REPORT_HISTORY)
        for cursor, report in found:
            self._report_cursor = cursor
            self._learner_reports.append(report)


@dataclass(slots=True)
class RateMeter:
    """Rate of a counter over the last `window_s` seconds."""

    window_s: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _points: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, count: int) -> float:
        """Note the counter's value now; returns its rate a second."""
        now = self.clock()
        if self._points and count < self._points[-1][1]:
            self._points.clear()  # the counter went back: its process was restored from a checkpoint
        self._points.append((now, count))
        while len(self._points) > 2 and now - self._points[0][0] > self.window_s:
            self._points.popleft()
        began, first = self._points[0]
        return (count - first) / (now - began) if now > began else 0.0
