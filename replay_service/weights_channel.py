"""The weights channel: the learner publishes, actors pull the newest, the evaluator gets each it shall judge."""

from __future__ import annotations

from dataclasses import dataclass

from replay_service import wire
from replay_service.errors import WireError
from replay_service.experience import ExperienceSpec
from replay_service.keys import Keys
from replay_service.policy_weights import PolicyWeights
from replay_service.redis_client import RedisClient, RedisPipeline
from replay_service.run_state import Phase

EVALUATION_BACKLOG = 64
"""Evaluation requests that are kept; beyond them the oldest are dropped."""
_PUBLICATION_HISTORY = 1_000


class WeightsChannel:
    """Publish and fetch policy weights."""

    def __init__(self, client: RedisClient, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def publish(
        self,
        policy: PolicyWeights,
        *,
        evaluated: PolicyWeights | None = None,
        asked_before: PolicyWeights | None = None,
        enter: Phase | None = None,
    ) -> None:
        """Make a version the newest one, atomically with its number.

        Repeating it, because its answer was lost, changes nothing: a version that Redis has already is left alone.

        Args:
            policy: what actors get; its `version` must be above every one before.
            evaluated: what the evaluator is asked to judge under the same version: `policy` or its average.
            asked_before: the version that the evaluator was asked for last; it is asked again if Redis lost that.
            enter: a phase that begins with this version.
        """
        known = int(self._client.hget(self._keys.run, "policy_version") or 0)
        if known >= policy.version:
            return
        message = wire.encode_policy_weights(policy)
        with self._client.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.weights, message)
            pipe.hset(self._keys.run, "policy_version", policy.version)
            pipe.xadd(self._keys.publications, {"version": policy.version}, maxlen=_PUBLICATION_HISTORY)
            if asked_before is not None and asked_before.version > known:
                self._request_evaluation(pipe, wire.encode_policy_weights(asked_before))
            if evaluated is not None:
                request = message if evaluated is policy else wire.encode_policy_weights(evaluated)
                self._request_evaluation(pipe, request)
            if enter is not None:
                pipe.hset(self._keys.run, "phase", enter.value)
            pipe.execute()

    def request_evaluation(self, policy: PolicyWeights) -> None:
        """Queue a version for the evaluator without giving it to the actors (the untrained policy, version 0)."""
        with self._client.pipeline(transaction=True) as pipe:
            self._request_evaluation(pipe, wire.encode_policy_weights(policy))
            pipe.execute()

    def _request_evaluation(self, pipe: RedisPipeline, message: bytes) -> None:
        pipe.xadd(self._keys.evaluation_requests, {"m": message}, maxlen=EVALUATION_BACKLOG, approximate=False)
        pipe.hincrby(self._keys.run, "evaluations_requested", 1)

    def fetch(self, *, fitting: ExperienceSpec | None = None) -> PolicyWeights | None:
        """The newest version, or None before the first.

        Args:
            fitting: the environment that the weights shall act in.

        Raises:
            WireError: what lies there is not a valid version, or one for another environment.
        """
        message = self.message()
        return None if message is None else decode(message, fitting)

    def message(self) -> bytes | None:
        """The newest version as it travels, or None before the first."""
        message: bytes | None = self._client.get(self._keys.weights)
        return message


def decode(message: bytes, fitting: ExperienceSpec | None) -> PolicyWeights:
    """Read a version from its message.

    Raises:
        WireError: it is no valid version, or one for another environment than `fitting`.
    """
    policy = wire.decode_policy_weights(message)
    problem = None if fitting is None else policy.misfit(fitting.observation_dim, fitting.action_dim)
    if problem is not None:
        raise WireError(problem)
    return policy


class PublicationTimes:
    """When the newest versions were published, by the clock of Redis; read on from where it stopped."""

    def __init__(self, client: RedisClient, keys: Keys) -> None:
        self._client = client
        self._key = keys.publications
        self._cursor = "0-0"
        self._times: dict[int, float] = {}

    def read(self) -> dict[int, float]:
        """Version -> Unix seconds of its publication, oldest version first; at most the newest 1,000."""
        for raw_id, values in self._client.xrange(self._key, min=f"({self._cursor}"):
            self._cursor = raw_id.decode()
            self._times[int(values[b"version"])] = int(self._cursor.partition("-")[0]) / 1000
        for version in sorted(self._times)[:-_PUBLICATION_HISTORY]:
            del self._times[version]
        return dict(self._times)


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationRequest:
    """A version that the evaluator shall judge."""

    request_id: str
    policy: PolicyWeights


class EvaluationRequests:
    """The evaluator's side of the queue, read in order from a cursor."""

    def __init__(
        self, client: RedisClient, keys: Keys, *, cursor: str = "0-0", fitting: ExperienceSpec | None = None
    ) -> None:
        self._client = client
        self._keys = keys
        self._fitting = fitting
        self.cursor = cursor

    def holds(self, request_id: str) -> bool:
        """Whether a request is still in the queue, done or not."""
        return bool(self._client.xrevrange(self._keys.evaluation_requests, request_id, request_id, count=1))

    def lost(self, request_id: str) -> bool:
        """Whether a request that was read is gone although the queue had no reason to drop it as its oldest."""
        if self.holds(request_id):
            return False
        queue = self._keys.evaluation_requests
        oldest = self._client.xrange(queue, count=1)
        full = self._client.xlen(queue) >= EVALUATION_BACKLOG
        return not (full and oldest and _place(oldest[0][0].decode()) > _place(request_id))

    def next(self, *, block_ms: int) -> EvaluationRequest | None:
        """Wait up to `block_ms` for the next request.

        Raises:
            WireError: the request is damaged, or for another environment; the cursor has moved past it.
        """
        reply = self._client.xread({self._keys.evaluation_requests: self.cursor}, count=1, block=block_ms)
        if not reply:
            return None
        raw_id, fields = reply[0][1][0]
        self.cursor = raw_id.decode()
        return EvaluationRequest(self.cursor, decode(fields.get(b"m", b""), self._fitting))


def _place(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)
