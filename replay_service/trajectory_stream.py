"""The online stream: actors append, the learner reads.

Delivery is at least once, append is idempotent by (actor, epoch, sequence): an actor that did not hear the answer
sends the same message again, and the service says 'duplicate' when it had it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from replay_service import scripts, wire
from replay_service.errors import EpochLost, SpecMismatch, StaleEpoch, WireError
from replay_service.experience import ExperienceSpec, Trajectory
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.spec_check import SPEC_FIELD, mismatch

_QUARANTINE_LENGTH = 1_000
_REASON_LENGTH = 300


@dataclass(frozen=True, slots=True)
class EpisodeOutcome:
    """How an episode of an actor ended; travels beside its last trajectory, for counters and displays."""

    episode_return: float
    success: bool | None
    """Whether the goal was met at any step; None when the environment has no notion of it."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The service's answer to an append or to a request for steps."""

    policy_version: int
    """Newest published version."""
    lease_steps: int
    """Environment steps that this actor may take and store."""
    wait_reason: str
    """Why the lease is shorter than asked: '' | 'phase' | 'limiter' | 'budget'."""
    duplicate: bool = False
    """The message had been stored before; nothing was added."""
    resend_from: int | None = None
    """The service misses an earlier sequence: send again from this one. Nothing was added."""


@dataclass(frozen=True, slots=True)
class StoredEpisode:
    """The newest episode that an actor has stored a part of."""

    number: int
    steps: int
    """Steps of it that are stored."""
    ended: bool


class TrajectoryWriter:
    """One incarnation of one actor, as the replay service sees it.

    Example:
        writer = TrajectoryWriter(client, keys, spec, actor_id=3)
        writer.register()
        admission = writer.request(200)
        admission = writer.append(trajectory, want_steps=200)   # stored, or known to be stored already
    """

    def __init__(self, client: RedisClient, keys: Keys, spec: ExperienceSpec, *, actor_id: int) -> None:
        self._keys = keys
        self._spec = spec
        self._fingerprint = spec.fingerprint
        self._client = client
        self._actor_id = actor_id
        self._append = client.register_script(scripts.source("append"))
        self._admit = client.register_script(scripts.source("admit"))
        self._register = client.register_script(scripts.source("register"))
        self._release = client.register_script(scripts.source("release"))
        self.epoch = 0
        self.stored_episode: StoredEpisode | None = None
        """What an earlier incarnation had stored last, as of the registration."""

    def register(self, *, replaces_crashed: bool = False, registration: str | None = None) -> int:
        """Open a new epoch; an older incarnation of this actor can append no more.

        Args:
            replaces_crashed: count a restart.
            registration: a word for this registration; a second call with the same one changes nothing, so it can be
                repeated when its answer was lost. None: every call opens an epoch.

        Returns:
            The epoch.

        Raises:
            SpecMismatch: the run's spec is not this actor's.
        """
        epoch, *answer = self._register(
            keys=[self._keys.run, self._keys.counters, self._keys.actor(self._actor_id), self._keys.actors],
            args=[
                self._fingerprint,
                self._actor_id,
                "1" if replaces_crashed else "0",
                registration or secrets.token_hex(8),
            ],
        )
        if epoch == 0:
            raise self._mismatch(answer[0])
        number, steps, ended = answer[1:]
        self.stored_episode = StoredEpisode(int(number), int(steps), ended == b"1") if number else None
        self.epoch = int(epoch)
        return self.epoch

    def request(self, want_steps: int, *, next_sequence: int = 0) -> Admission:
        """Ask for steps without sending any; also tells the service that this actor is alive.

        Args:
            want_steps: environment steps that the actor would take next.
            next_sequence: the one behind the last that was acknowledged. A service that has lost some says from which
                on to send again, and admits nothing.

        Raises:
            StaleEpoch: another incarnation of this actor has registered.
            EpochLost: the service has forgotten this one.
        """
        reply = self._admit(
            keys=[self._keys.run, self._keys.counters, self._keys.actor(self._actor_id)],
            args=[str(self.epoch), want_steps, next_sequence],
        )
        return self._admission(reply)

    def append(self, trajectory: Trajectory, *, want_steps: int, outcome: EpisodeOutcome | None = None) -> Admission:
        """Store a trajectory exactly once and ask for the next steps, in one round trip.

        Args:
            trajectory: its `origin` must carry this writer's actor and epoch.
            want_steps: environment steps that the actor would take next.
            outcome: given with the last trajectory of an episode.

        Raises:
            SpecMismatch: the run's spec is not this actor's.
            StaleEpoch: another incarnation of this actor has registered.
            EpochLost: the service has forgotten this one.
        """
        origin = trajectory.origin
        success = "" if outcome is None or outcome.success is None else str(int(outcome.success))
        reply = self._append(
            keys=[self._keys.run, self._keys.counters, self._keys.online, self._keys.actor(self._actor_id)],
            args=[
                self._fingerprint,
                origin.actor_id,
                str(origin.epoch),
                origin.sequence,
                trajectory.num_steps,
                wire.encode_trajectory(trajectory),
                want_steps,
                origin.policy_version,
                "0" if outcome is None else "1",
                "" if outcome is None else repr(outcome.episode_return),
                success,
                origin.episode,
                origin.first_step + trajectory.num_steps,
            ],
        )
        return self._admission(reply)

    def release(self) -> int | None:
        """Give unused steps back, on leaving.

        Returns:
            How many; None when a newer incarnation of this actor has registered, whose lease it is.
        """
        keys = [self._keys.counters, self._keys.actor(self._actor_id)]
        released = int(self._release(keys=keys, args=[0, str(self.epoch)]))
        return None if released < 0 else released

    def _admission(self, reply: list[bytes | int]) -> Admission:
        status, version, lease, reason, detail = (v.decode() if isinstance(v, bytes) else v for v in reply)
        if status == "wrong_spec":
            raise self._mismatch(detail)
        if status == "stale_epoch" and int(detail) < self.epoch:
            raise EpochLost(f"actor {self._actor_id}: the service knows epoch {detail}, this is epoch {self.epoch}")
        if status == "stale_epoch":
            raise StaleEpoch(
                f"actor {self._actor_id}: epoch {self.epoch} has been replaced by epoch {detail}; this process must end"
            )
        return Admission(
            policy_version=int(version),
            lease_steps=int(lease),
            wait_reason=str(reason),
            duplicate=status == "duplicate",
            resend_from=int(detail) if status == "gap" else None,
        )

    def _mismatch(self, run_fingerprint: object) -> SpecMismatch:
        theirs = run_fingerprint.decode() if isinstance(run_fingerprint, bytes) else str(run_fingerprint or "")
        text = (self._client.hget(self._keys.run, SPEC_FIELD) or b"").decode(errors="replace")
        who = f"actor {self._actor_id}"
        return mismatch(who, self._keys.run_id, self._spec, fingerprint=theirs, text=text)


@dataclass(frozen=True, slots=True, eq=False)
class StreamEntry:
    """A trajectory as the learner finds it in a stream."""

    entry_id: str
    first_step: int
    """Number of steps that were appended to the stream before this entry; fixes its place in the mirror."""
    trajectory: Trajectory


@dataclass(frozen=True, slots=True)
class BadEntry:
    """An entry that is no valid trajectory of this run."""

    entry_id: str
    actor_id: int
    reason: str


class TrajectoryReader:
    """Read a trajectory stream in order, from a cursor that survives restarts."""

    def __init__(self, client: RedisClient, stream: str, spec: ExperienceSpec, *, cursor: str = "0-0") -> None:
        self._client = client
        self._stream = stream
        self._spec = spec
        self.cursor = cursor

    def read(self, *, count: int = 64, block_ms: int | None = None) -> Iterator[StreamEntry | BadEntry]:
        """Yield up to `count` entries after the cursor and move it past each as it is yielded.

        Args:
            count: most entries in one reply.
            block_ms: wait this long for a first entry; None does not wait.
        """
        reply = self._client.xread({self._stream: self.cursor}, count=count, block=block_ms)
        for _stream, entries in reply or []:
            for raw_id, fields in entries:
                entry = parse_entry(raw_id.decode(), fields, self._spec)
                self.cursor = entry.entry_id
                yield entry


def parse_entry(entry_id: str, fields: dict[bytes, bytes], spec: ExperienceSpec) -> StreamEntry | BadEntry:
    """Decode and check one stream entry; whatever is wrong becomes the reason of a `BadEntry`."""
    try:
        actor_id = int(fields.get(b"a", b"-2"))
    except ValueError:
        actor_id = -2
    try:
        trajectory = wire.decode_trajectory(fields[b"m"])
        first_step, steps = _count(fields[b"f"]), _count(fields[b"n"])
    except WireError as error:
        return BadEntry(entry_id, actor_id, str(error))
    except (KeyError, ValueError) as error:
        return _bad(entry_id, actor_id, f"stream fields: expected a, e, s, n, f and m, got a bad or missing {error}")
    origin = trajectory.origin
    stamped = (fields.get(b"a"), fields.get(b"e"), fields.get(b"s"))
    claimed = tuple(str(v).encode() for v in (origin.actor_id, origin.epoch, origin.sequence))
    if stamped != claimed or steps != trajectory.num_steps:
        return _bad(entry_id, actor_id, f"message claims {claimed}, {trajectory.num_steps} steps; stream {stamped}")
    problem = trajectory.problem(spec)
    if problem is not None:
        return BadEntry(entry_id, actor_id, problem)
    return StreamEntry(entry_id, first_step, trajectory)


def _count(text: bytes) -> int:
    # As append.lua writes it. A position of thirty digits would pass int() and break the mirror's arithmetic.
    if not re.fullmatch(rb"[0-9]{1,15}", text):
        raise ValueError(f"number {text[:20]!r}")
    return int(text)


def _bad(entry_id: str, actor_id: int, reason: str) -> BadEntry:
    return BadEntry(entry_id, actor_id, reason[:_REASON_LENGTH])  # it quotes fields that may be of any length


class Quarantine:
    """Take bad messages out of the online stream and keep them, with the reason, for inspection."""

    def __init__(self, client: RedisClient, keys: Keys) -> None:
        self._keys = keys
        self._script = client.register_script(scripts.source("quarantine"))

    def put(self, bad: BadEntry) -> int:
        """Move one entry; the counters follow.

        Returns:
            Environment steps that were taken out of the counts.
        """
        moved = self._script(
            keys=[self._keys.counters, self._keys.online, self._keys.quarantine, self._keys.actor(bad.actor_id)],
            args=[bad.entry_id, bad.reason, _QUARANTINE_LENGTH],
        )
        return max(0, int(moved))
