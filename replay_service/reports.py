"""What roles report about themselves besides experience and weights: evaluations, learner metrics, actor ledgers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from replay_service.keys import Keys
from replay_service.redis_client import RedisClient, StreamRecord
from replay_service.run_state import RunState

_ACTOR_ALIVE_S = 15.0
_REPORT_HISTORY = 10_000
_INDEX = re.compile(rb"\d{1,9}")
_COUNT = re.compile(rb"-?\d{1,18}")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of judging one policy version with the mean action on the fixed evaluation seeds."""

    policy_version: int
    env_steps: int
    """Online environment steps behind the version; 0 is the offline point."""
    grad_steps: int
    success_any: float | None
    """Share of episodes in which the goal was met at any step; None when the environment has no success."""
    success_final: float | None
    """Share of episodes in which the goal was met at the last step."""
    success_fraction: float | None
    """Share of all steps at which the goal was met."""
    episode_return: float
    """Mean undiscounted return."""
    episode_length: float
    """Mean number of steps."""
    episodes: int
    seconds: float
    """Time that the evaluation took."""
    unix_seconds: float
    """When it ended."""


@dataclass(frozen=True, slots=True)
class LearnerReport:
    """A snapshot of the learner's metrics (means since the report before)."""

    grad_steps: int
    env_steps: int
    unix_seconds: float
    metrics: dict[str, float]
    """Metric name -> value; `docs/awac.md` explains each."""


@dataclass(frozen=True, slots=True)
class ActorLedger:
    """What the service has recorded of one actor."""

    actor_id: int
    epoch: int
    next_sequence: int
    stored_steps: int
    duplicate_steps: int
    quarantined_steps: int
    lease: int
    episodes: int
    successes: int
    restarts: int
    policy_version: int
    last_return: float | None
    last_seen_ms: int
    damaged: tuple[str, ...] = ()
    """Fields that hold no number and are read as 0: whoever has an actor's credential can write them."""


_COUNTED = tuple(item.name for item in fields(ActorLedger) if item.name not in ("actor_id", "last_return", "damaged"))


def is_heard_of(actor: ActorLedger, *, unix_seconds: float) -> bool:
    """Whether an actor has asked or sent something within the last 15 s."""
    return unix_seconds - actor.last_seen_ms / 1000 < _ACTOR_ALIVE_S


def staying(actors: Iterable[ActorLedger], state: RunState, *, unix_seconds: float) -> list[ActorLedger]:
    """Actors of the run but those that `launcher scale` sent away: Redis keeps the accounts of all there ever were."""
    places = state.actors
    return [a for a in actors if a.actor_id < places or places == 0 or is_heard_of(a, unix_seconds=unix_seconds)]


class Reports:
    """Write and read reports."""

    def __init__(self, client: RedisClient, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def add_evaluation(self, evaluation: Evaluation, *, request_id: str) -> None:
        """Record an evaluation and count it, atomically; once, however often it is repeated for a lost answer."""
        if self.last_judged_request() == request_id:
            return
        with self._client.pipeline(transaction=True) as pipe:
            pipe.xadd(self._keys.evaluations, {"json": json.dumps(asdict(evaluation)), "request": request_id})
            pipe.hincrby(self._keys.evaluation_counters, "evaluations_done", 1)
            pipe.execute()

    def settle_evaluations(self, *, read_to: str, last_judged: str | None) -> int:
        """Count what nobody will judge any more as missed, so that nobody waits for it.

        For the evaluator alone, which knows what it has read and judged. Nothing is counted while the queue holds a
        request that it has not read, or while Redis, which died, lacks its last result: both are still to come.
        Repeating it for a lost answer changes nothing.

        Args:
            read_to: id of the last request that the evaluator has read.
            last_judged: id of the last request that it gave a result; None when it gave none since it started.

        Returns:
            How many were missed since the last time: dropped from a full queue, or damaged.
        """
        key = self._keys.evaluation_counters
        with self._client.pipeline(transaction=True) as pipe:  # one moment: Redis may lose something between two
            pipe.xrange(self._keys.evaluation_requests, f"({read_to}", count=1)
            pipe.xrevrange(self._keys.evaluations, count=1)
            pipe.hget(self._keys.run, "evaluations_requested")
            pipe.hget(key, "evaluations_done")
            unread, newest, requested, done = pipe.execute()
        missed = int(requested or 0) - int(done or 0)
        if unread or missed <= 0 or (last_judged is not None and _request_of(newest) != last_judged):
            return 0
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hincrby(key, "evaluations_done", missed)
            pipe.hincrby(key, "evaluations_missed", missed)
            pipe.execute()
        return missed

    def evaluations(self, after: str = "0-0") -> Iterator[tuple[str, Evaluation]]:
        """Yield (entry id, evaluation) recorded after an entry id, oldest first."""
        for raw_id, values in self._client.xrange(self._keys.evaluations, min=f"({after}"):
            yield raw_id.decode(), _evaluation(json.loads(values[b"json"]))

    def last_judged_request(self) -> str:
        """Id of the newest request that has a result; '0-0' when there is none."""
        return _request_of(self._client.xrevrange(self._keys.evaluations, count=1))

    def add_learner_report(self, report: LearnerReport) -> None:
        """Record a snapshot of the learner's metrics; once, however often it is repeated for a lost answer."""
        key, name = self._keys.run, f"{report.grad_steps} {report.unix_seconds!r}"
        if self._client.hget(key, "last_report") == name.encode():
            return
        with self._client.pipeline(transaction=True) as pipe:
            pipe.xadd(self._keys.learner_reports, {"json": json.dumps(asdict(report))}, maxlen=_REPORT_HISTORY)
            pipe.hset(key, "last_report", name)
            pipe.execute()

    def learner_reports(self, after: str = "0-0") -> Iterator[tuple[str, LearnerReport]]:
        """Yield (entry id, report) recorded after an entry id, oldest first."""
        for raw_id, values in self._client.xrange(self._keys.learner_reports, min=f"({after}"):
            yield raw_id.decode(), LearnerReport(**json.loads(values[b"json"]))

    def recent_learner_reports(self, count: int) -> list[tuple[str, LearnerReport]]:
        """(entry id, report) of the newest `count` reports, oldest first."""
        found = self._client.xrevrange(self._keys.learner_reports, count=count)
        return [(raw_id.decode(), LearnerReport(**json.loads(values[b"json"]))) for raw_id, values in reversed(found)]

    def latest_learner_report(self) -> LearnerReport | None:
        """The newest snapshot, or None."""
        newest = self._client.xrevrange(self._keys.learner_reports, count=1)
        return LearnerReport(**json.loads(newest[0][1][b"json"])) if newest else None

    def actors(self) -> list[ActorLedger]:
        """The ledger of every actor that ever registered, by index."""
        return self.state_and_actors()[1]

    def state_and_actors(self) -> tuple[RunState, list[ActorLedger]]:
        """The run's counters and the ledgers, read at one moment: their sums agree, but for an actor that has come in
        since the set of actors was read, just before.
        """
        members = self._client.smembers(self._keys.actors)
        ids = sorted(int(member) for member in members if _INDEX.fullmatch(member))
        with self._client.pipeline(transaction=True) as pipe:
            for key in (*self._keys.state, *(self._keys.actor(actor_id) for actor_id in ids)):
                pipe.hgetall(key)
            found = pipe.execute()
        parts, actors = found[: len(self._keys.state)], found[len(self._keys.state) :]
        return RunState.from_hashes(parts), [
            _ledger(actor_id, found) for actor_id, found in zip(ids, actors, strict=True)
        ]


def _request_of(newest: list[StreamRecord]) -> str:
    """Id of the request that the newest result answers; '0-0' without one."""
    return newest[0][1][b"request"].decode() if newest else "0-0"


def _evaluation(values: dict[str, Any]) -> Evaluation:
    known = {item.name for item in fields(Evaluation)}
    return Evaluation(**{name: value for name, value in values.items() if name in known})


def _ledger(actor_id: int, values: dict[bytes, bytes]) -> ActorLedger:
    damaged = []

    def count(name: str) -> int:
        raw = values.get(name.encode(), b"0")
        if _COUNT.fullmatch(raw):
            return int(raw)
        damaged.append(name)
        return 0

    last_return: float | None = None
    if raw := values.get(b"last_return", b""):
        try:
            last_return = float(raw)
        except ValueError:
            damaged.append("last_return")
    counts = {name: count(name) for name in _COUNTED}
    return ActorLedger(actor_id=actor_id, **counts, last_return=last_return, damaged=tuple(damaged))
