"""The run's shared state in Redis: phase, counters, limiter settings; and the endpoints of its processes.

It lies in several hashes, by who may write: an actor's credential must not reach the phase or the budget.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from replay_service import scripts
from replay_service.config import RunConfig
from replay_service.connection import CONNECT_TIMEOUT_S, RedisEndpoint, connect, user_facing_errors
from replay_service.errors import DamagedState, RunDirectoryError
from replay_service.keys import Keys
from replay_service.process_identity import ProcessIdentity
from replay_service.redis_client import RedisClient
from replay_service.spec_check import SPEC_FIELD, mismatch, spec_text

_ACTORS_COUNT = (
    "env_steps", "appended_steps", "leased_steps", "retained_steps", "episodes", "successes", "duplicate_steps",
    "quarantined_steps", "quarantined_messages", "actor_restarts",
)  # fmt: skip
_EVALUATOR_COUNTS = ("evaluations_done", "evaluations_missed")


class Phase(enum.StrEnum):
    """Where a run stands. Phases follow in this order; only a larger budget leads from finished back to online."""

    SEEDING = "seeding"
    PRETRAINING = "pretraining"
    ONLINE = "online"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class RunState:
    """One reading of the run's hashes. Counters are totals since the run began."""

    phase: Phase
    env_steps: int
    """Online environment steps stored and valid."""
    appended_steps: int
    """Online environment steps ever stored; unlike `env_steps` it never goes down."""
    leased_steps: int
    """Steps that actors were admitted for and have not stored yet."""
    grad_steps: int
    """Optimizer updates, offline ones included."""
    online_grad_steps: int
    checkpointed_grad_steps: int
    """Optimizer updates in the newest checkpoint that was written."""
    policy_version: int
    episodes: int
    successes: int
    """Training episodes (with exploration) that met the goal at any step."""
    retained_steps: int
    """Transitions in the online stream."""
    seed_steps: int
    duplicate_steps: int
    quarantined_steps: int
    quarantined_messages: int
    actor_restarts: int
    learner_restarts: int
    evaluations_requested: int
    evaluations_done: int
    """Requests that are judged, or that the evaluator knows it never will."""
    evaluations_missed: int
    """Of these, the ones never judged: damaged, or dropped as the oldest of a backlog beyond what is kept."""
    num_env_steps: int
    num_offline_steps: int
    initial_env_steps: int
    tolerance_env_steps: int
    """How many environment steps the actors may be ahead of the learner."""
    replay_capacity: int
    actors: int
    """Actors that the launcher has places for; 0 without a launcher."""
    actors_wanted: int
    """Actors that it shall have: `launcher scale` writes it, the launcher makes it so."""
    utd_ratio: float
    """Gradient steps per environment step that the limiter holds."""
    spec_fingerprint: str
    stop_requested: str
    """Why the run shall stop (`launcher down`), or ''."""

    @property
    def measured_utd_ratio(self) -> float | None:
        """Online gradient steps per environment step, the initial steps (which owe none) left out; None before them."""
        owing = self.env_steps - self.initial_env_steps
        return self.online_grad_steps / owing if owing > 0 else None

    @property
    def evaluations_waiting(self) -> int:
        """Requests that the evaluator has not come to yet."""
        return max(0, self.evaluations_requested - self.evaluations_done)

    @property
    def utd_band(self) -> tuple[float, float] | None:
        """Bounds that the limiter sets to `measured_utd_ratio` at this many steps; None before the first."""
        owing = self.env_steps - self.initial_env_steps
        if owing <= 0:
            return None
        return self.utd_ratio * max(0.0, 1 - self.tolerance_env_steps / owing), self.utd_ratio

    @property
    def env_steps_ahead(self) -> float:
        """Environment steps, admitted ones included, that the learner has not done its updates for yet.

        The actors wait at `tolerance_env_steps`; the learner waits at 0 and below.
        """
        paid = self.online_grad_steps / self.utd_ratio if self.utd_ratio else 0.0
        return self.env_steps + self.leased_steps - self.initial_env_steps - paid

    @staticmethod
    def from_hashes(parts: Iterable[dict[bytes, bytes]]) -> RunState:
        """Build a state from HGETALL's replies for `Keys.state`; absent counters are 0."""
        return RunState.from_hash({name: value for part in parts for name, value in part.items()})

    @staticmethod
    def from_hash(values: dict[bytes, bytes]) -> RunState:
        """Build a state from all its fields; absent counters are 0.

        Raises:
            DamagedState: a field holds something else than it should.
        """
        converted: dict[str, Any] = {}
        for item in fields(RunState):
            raw = values.get(item.name.encode(), b"")
            try:
                if item.name == "phase":
                    converted["phase"] = Phase(raw.decode() or "seeding")
                elif item.name in ("spec_fingerprint", "stop_requested"):
                    converted[item.name] = raw.decode()
                elif item.name == "utd_ratio":
                    converted[item.name] = float(raw or 0)
                else:
                    converted[item.name] = int(raw or 0)
            except ValueError as error:
                raise DamagedState(
                    f"the run's state in Redis: {item.name} holds {raw[:40]!r}, which is none of its values; somebody "
                    "else has written there. Change Redis's passwords and resume from a copy of its data"
                ) from error
        return RunState(**converted)


def is_in_redis(endpoint: RedisEndpoint, keys: Keys) -> bool:
    """Whether the Redis at an endpoint holds a run.

    Raises:
        RedisUnavailable: it does not answer, or refuses.
    """
    with user_facing_errors(endpoint):
        client = connect(endpoint, reply_timeout_s=CONNECT_TIMEOUT_S)
        try:
            return RunStateStore(client, keys).exists()
        finally:
            client.close()


class RunStateStore:
    """Read and write the run's shared state."""

    def __init__(self, client: RedisClient, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._leave_seeding = client.register_script(scripts.source("seeded"))

    def initialise(self, config: RunConfig, *, keep_stop: bool = False) -> bool:
        """Create the run's state, or check that an existing one fits; its budget and limiter take the new settings.

        Args:
            config: of the run.
            keep_stop: leave a stop that was asked for, as after a crash within a session.

        Returns:
            Whether the state existed already (the run is being resumed).

        Raises:
            SpecMismatch: the keys in Redis belong to a run with another environment or wire version.
        """
        fingerprint = config.spec.fingerprint
        created = bool(self._client.hsetnx(self._keys.run, "spec_fingerprint", fingerprint))
        state = self.read()
        if state.spec_fingerprint != fingerprint:
            text = (self._client.hget(self._keys.run, SPEC_FIELD) or b"").decode(errors="replace")
            raise mismatch(
                "the replay service", config.run_id, config.spec, fingerprint=state.spec_fingerprint, text=text
            )
        self._move_counters()
        self._client.hset(
            self._keys.run,
            mapping={
                SPEC_FIELD: spec_text(config.spec),
                "num_env_steps": config.num_env_steps,
                "num_offline_steps": config.num_offline_steps,
                "utd_ratio": repr(config.utd_ratio),
                "initial_env_steps": min(config.initial_env_steps, config.num_env_steps),
                "tolerance_env_steps": config.tolerance_env_steps,
                "replay_capacity": config.replay.capacity,
            },
        )
        self._client.hsetnx(self._keys.run, "phase", Phase.SEEDING.value)
        if not keep_stop:
            self._client.hdel(self._keys.run, "stop_requested")
            is_done = state.phase is Phase.FINISHED and state.env_steps >= config.num_env_steps
            if not is_done or self._client.hget(self._keys.run, "final_status") != b"finished":
                self._client.hdel(self._keys.run, "final_status")
        return not created

    def exists(self) -> bool:
        """Whether Redis holds this run."""
        return self._client.hget(self._keys.run, "spec_fingerprint") is not None

    def read(self) -> RunState:
        """One reading of all counters.

        Raises:
            RunDirectoryError: Redis holds no such run.
        """
        with self._client.pipeline(transaction=True) as pipe:
            for key in self._keys.state:
                pipe.hgetall(key)
            parts = pipe.execute()
        if not parts[0]:
            raise RunDirectoryError(f"Redis holds no run {self._keys.run_id!r}")
        return RunState.from_hashes(parts)

    def _move_counters(self) -> None:
        """Bring a run of an earlier version, which kept all its counters in one hash, into today's form."""
        values = self._client.hgetall(self._keys.run)
        for key, names in ((self._keys.counters, _ACTORS_COUNT), (self._keys.evaluation_counters, _EVALUATOR_COUNTS)):
            found = {name: values[name.encode()] for name in names if name.encode() in values}
            if found:
                with self._client.pipeline(transaction=True) as pipe:
                    pipe.hset(key, mapping=found)
                    pipe.hdel(self._keys.run, *found)
                    pipe.execute()

    def env_steps(self) -> int:
        """Online environment steps stored and valid, alone: what the learner asks for many times a second."""
        return int(self._client.hget(self._keys.counters, "env_steps") or 0)

    def set_phase(self, phase: Phase) -> None:
        """Enter a phase."""
        self._client.hset(self._keys.run, "phase", phase.value)

    def leave_seeding(self) -> None:
        """Enter `pretraining` from `seeding`; a run that has come further stays where it is.

        The answer to a first try may be lost, and the learner may have gone online before the second.
        """
        self._leave_seeding(keys=[self._keys.run], args=[Phase.PRETRAINING.value])

    def request_stop(self, reason: str) -> None:
        """Ask the launcher to stop the run in order."""
        self._client.hset(self._keys.run, "stop_requested", reason)

    def request_actors(self, actors: int) -> None:
        """Ask the launcher for another number of actors."""
        self._client.hset(self._keys.run, "actors_wanted", str(actors))

    def open_places(self, config: RunConfig) -> None:
        """Note how many actors the launcher starts with. Nothing that was asked for before counts any more."""
        self._client.hset(self._keys.run, mapping={"actors": config.actors, "actors_wanted": config.actors})

    def set_actors(self, config: RunConfig) -> None:
        """Note how many actors the run has now, and the width of the limiter's band that goes with them."""
        mapping = {"actors": config.actors, "tolerance_env_steps": config.tolerance_env_steps}
        self._client.hset(self._keys.run, mapping=mapping)

    def set_final_status(self, status: str) -> None:
        """What the summary shall say once the run is down: finished, stopped or failed."""
        self._client.hset(self._keys.run, "final_status", status)

    def set_checkpointed(self, grad_steps: int) -> None:
        """Note that a checkpoint was written, without which the run cannot be resumed."""
        self._client.hset(self._keys.run, "checkpointed_grad_steps", grad_steps)

    def count_learner_restart(self) -> None:
        """Add one to the run's learner restarts."""
        self._client.hincrby(self._keys.run, "learner_restarts", 1)

    def publish_endpoint(self, process: str, address: str) -> None:
        """Tell service discovery where this process serves its metrics (`host:port`), and which process it is."""
        self._client.hset(self._keys.endpoints, process, address)
        self.publish_process(process, ProcessIdentity.own())

    def publish_process(self, name: str, process: ProcessIdentity) -> None:
        """Tell which process plays a role."""
        self._client.hset(self._keys.processes, name, process.to_json())

    def processes(self) -> dict[str, ProcessIdentity]:
        """Role ('learner', 'actor-3', 'redis') -> the process that played it last."""
        found = self._client.hgetall(self._keys.processes)
        return {name.decode(): ProcessIdentity.from_json(text) for name, text in sorted(found.items())}

    def withdraw_endpoint(self, process: str) -> None:
        """Remove a process from service discovery."""
        self._client.hdel(self._keys.endpoints, process)

    def endpoints(self) -> dict[str, str]:
        """Process name -> `host:port` of its metrics."""
        found = self._client.hgetall(self._keys.endpoints)
        return {name.decode(): address.decode() for name, address in sorted(found.items())}
