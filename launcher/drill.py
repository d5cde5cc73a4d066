"""One crash drill: kill a role's process for real, wait until the role works again, count every step again."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from launcher.doctor import examine, recount
from launcher.learner_node import LearnerNode
from launcher.ray_worker import command_of, worker_above
from launcher.run_directory import RunDirectory
from replay_service.config import RunConfig
from replay_service.connection import TRANSIENT_ERRORS, RedisEndpoint, connect
from replay_service.errors import ConfigError, RunDirectoryError
from replay_service.keys import Keys
from replay_service.process_identity import ProcessIdentity
from replay_service.records import unaccounted_steps
from replay_service.redis_client import RedisClient
from replay_service.reports import ActorLedger, Evaluation, Reports
from replay_service.run_state import Phase, RunState, RunStateStore

Role = Literal["actor", "learner", "replay", "redis", "evaluator", "ray-worker"]
ROLES: tuple[Role, ...] = get_args(Role)

_POLL_S = 0.05
_AUDIT_PAUSE_S = 0.5
_REPLY_TIMEOUT_S = 5.0
_SHOWN_COMMAND = 60
_WITNESSES = 512
"""Messages that are remembered before a kill: far more than the last second, which is all that Redis may forget."""

Origin = tuple[int, int, int]
"""Actor, epoch and sequence of a message."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A run at one moment."""

    state: RunState
    actors: dict[int, ActorLedger]
    processes: dict[str, ProcessIdentity]
    endpoints: dict[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """What a drill kills."""

    role: Role
    name: str
    """The process whose work is waited for: 'actor-3', 'learner', ..."""
    process: ProcessIdentity
    """What is killed."""
    actors: tuple[int, ...] = ()
    """Actors that die with it and have to come back."""


@dataclass(frozen=True, slots=True)
class Witness:
    """A message that Redis had acknowledged before the kill."""

    first_step: int
    """Steps appended before it."""
    steps: int


@dataclass(frozen=True, slots=True)
class Audit:
    """What counting again has found; all zero and empty in a sound run."""

    lost_steps: int = 0
    doubled_steps: int = 0
    unaccounted_steps: int = 0
    bad_findings: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Nothing is lost, doubled, unaccounted or damaged."""
        return not (self.lost_steps or self.doubled_steps or self.unaccounted_steps or self.bad_findings)


@dataclass(frozen=True, slots=True)
class Drill:
    """How a drill went."""

    number: int
    role: Role
    killed: str
    pid: int
    unix_seconds: float
    back_after_s: float | None
    """Seconds from the kill to the role's first work; None: it did not come back within the limit."""
    shown_by: str
    """What showed that it works again, or what was still waited for."""
    audit: Audit
    success_before: float | None
    """Share of successful episodes of the last evaluation before the kill; None without one."""
    success_after: float | None
    """The same of the first evaluation that ended after the kill, if it came before the drill was over."""
    ended_as: str | None = None
    """How the run ended, if it did so before the drill was over: finished, stopped, failed, or running when its
    launcher was killed."""

    @property
    def passed(self) -> bool:
        """No acknowledged step is lost or doubled, and the role came back or was no longer needed."""
        back = self.back_after_s is not None if self.ended_as is None else self.ended_as in ("finished", "stopped")
        return back and self.audit.sound

    def to_json(self) -> dict[str, Any]:
        """Plain values for one line of JSON."""
        return {**asdict(self), "passed": self.passed}


class RunEnded(Exception):
    """The launcher is gone: there is nothing left to wait for."""


class NothingToKillNow(RunDirectoryError):
    """There is nothing to kill at the moment; a later drill may find it."""


class NothingLeftToKill(RunDirectoryError):
    """The run is over, or is not up."""


@dataclass(slots=True)
class LiveRun:
    """A run that is up, read while parts of it are dead."""

    directory: RunDirectory
    config: RunConfig
    _client: RedisClient | None = field(default=None)

    @property
    def keys(self) -> Keys:
        """The run's keys."""
        return Keys(self.config.run_id)

    def client(self) -> RedisClient:
        """A client that gives up soon."""
        if self._client is None:
            self._client = connect(RedisEndpoint.load(self.directory.connection), reply_timeout_s=_REPLY_TIMEOUT_S)
        return self._client

    def close(self) -> None:
        """Give the connection back."""
        if self._client is not None:
            self._client.close()

    def read(self) -> Reading | None:
        """One reading; None while Redis does not answer.

        Raises:
            RunEnded: its launcher is gone.
        """
        if self.directory.holder() is None:
            raise RunEnded
        store = RunStateStore(self.client(), self.keys)
        try:
            state, actors = Reports(self.client(), self.keys).state_and_actors()
            return Reading(state, {a.actor_id: a for a in actors}, store.processes(), store.endpoints())
        except TRANSIENT_ERRORS:
            return None

    def last_evaluation(self) -> Evaluation | None:
        """The newest evaluation, or None."""
        found = [evaluation for _id, evaluation in Reports(self.client(), self.keys).evaluations()]
        return found[-1] if found else None


def find_target(role: Role, reading: Reading, number: int, *, redis_url: str) -> Target:
    """The process that a drill kills.

    Args:
        role: what to kill.
        reading: the run now.
        number: of the drill, from 0; actors take turns.
        redis_url: the user's own Redis, or ''.

    Raises:
        ConfigError: the role has no process that this command may kill.
        NothingToKillNow: the process has not registered, or is not running.
        RunDirectoryError: it runs on another machine, or there is no Ray worker of the run above it.
    """
    if role == "redis" and redis_url:
        raise ConfigError(f"--kill redis: {redis_url} is not the run's own server; only an embedded Redis is killed")
    actors = sorted(i for i in reading.actors if _is_here_and_alive(reading.processes.get(f"actor-{i}")))
    if role in ("actor", "ray-worker"):
        name = f"actor-{actors[number % len(actors)]}" if actors else "actor-0"
    else:
        name = role
    process = reading.processes.get(name)
    if process is None:
        raise NothingToKillNow(f"--kill {role}: {name} has not registered yet; try again once the run is online")
    if not process.is_here:
        raise RunDirectoryError(
            f"--kill {role}: {name} runs on {process.host}, and a drill kills only processes of the machine where it "
            f"is started: run the same command on {process.host}"
        )
    if not process.is_alive:
        raise NothingToKillNow(f"--kill {role}: {name} (process id {process.pid}) is not running now; try again")
    if role == "actor":
        return Target(role, name, process, (int(name.partition("-")[2]),))
    if role != "ray-worker":
        return Target(role, name, process)
    pool = process.parent()
    if pool is None:
        raise NothingToKillNow(f"--kill {role}: {name} (process id {process.pid}) is not running now; try again")
    worker = worker_above(pool)
    if worker is None:
        raise RunDirectoryError(_no_worker(name, pool))
    below = tuple(i for i in actors if reading.processes[f"actor-{i}"].parent() == pool)
    return Target(role, name, worker, below)


def _no_worker(name: str, pool: ProcessIdentity) -> str:
    above = pool.parent()
    found = f"process id {above.pid}, {command_of(above)[:_SHOWN_COMMAND]!r}" if above is not None else "nothing"
    return (
        f"--kill ray-worker: expected a Ray worker of this run above {name} and its pool, found {found}: a drill kills "
        "only what `launcher up` started, and this actor was started by hand; --kill actor kills it alone"
    )


def _is_here_and_alive(process: ProcessIdentity | None) -> bool:
    return process is not None and process.is_here and process.is_alive


def witnesses(client: RedisClient, keys: Keys) -> dict[Origin, Witness]:
    """The newest acknowledged messages."""
    found = {}
    for _id, fields in client.xrevrange(keys.online, count=_WITNESSES):
        try:
            actor_id, epoch, sequence, first, steps = (int(fields[name]) for name in (b"a", b"e", b"s", b"f", b"n"))
        except (KeyError, ValueError):
            continue  # malformed: the learner puts it into quarantine
        found[actor_id, epoch, sequence] = Witness(first, steps)
    return found


def works_again(target: Target, before: Reading, back: Reading, now: Reading) -> str | None:
    """What shows that a killed role works again, or None while nothing does.

    Args:
        target: what was killed.
        before: the run as it was when the process had died; just before that when Redis died with it.
        back: the first reading in which the role's new process, or Redis, answered.
        now: the run now.
    """
    state = now.state
    if target.role in ("actor", "ray-worker"):
        return _actors_work(target, before, now)
    if now.processes.get(target.name) == target.process:
        return None
    if target.role == "learner":
        if state.policy_version > before.state.policy_version:
            return f"policy version {state.policy_version} published"
        return f"gradient step {state.grad_steps}" if state.grad_steps != before.state.grad_steps else None
    if target.role == "evaluator":
        return "registered"
    if target.role == "replay":
        return "Redis and metrics answer" if _metrics_answer(now.endpoints.get(target.name)) else None
    if _no_more_steps(state):
        return "Redis answers"
    return "a trajectory appended" if state.appended_steps > back.state.appended_steps else None


def _actors_work(target: Target, before: Reading, now: Reading) -> str | None:
    for actor_id in target.actors:
        actor = now.actors[actor_id]
        if actor.epoch <= before.actors[actor_id].epoch:
            return None
        if actor.next_sequence == 0 and not _no_more_steps(now.state):
            return None
    epochs = ", ".join(f"{now.actors[i].epoch} of actor {i}" for i in target.actors[:4])
    return f"registered, epoch {epochs}" if _no_more_steps(now.state) else f"a trajectory stored, epoch {epochs}"


def _no_more_steps(state: RunState) -> bool:
    return state.phase is not Phase.ONLINE or state.env_steps + state.leased_steps >= state.num_env_steps


def _metrics_answer(address: str | None) -> bool:
    if address is None:
        return False
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=2.0) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def count_again(run: LiveRun, seen: dict[Origin, Witness]) -> Audit:
    """Read the run's stream again, look for the witnesses and compare every account."""
    client, keys = run.client(), run.keys
    state, actors = Reports(client, keys).state_and_actors()
    found = recount(client, keys.online, run.config.spec, before=state.appended_steps)
    missing = max(0, found.missing_positions - state.quarantined_steps)
    oldest = client.xrange(keys.online, count=1)
    first_kept = int(oldest[0][1].get(b"f", b"0")) if oldest else state.appended_steps
    still = found.origins
    gone = sum(w.steps for origin, w in seen.items() if origin not in still and w.first_step >= first_kept)
    return Audit(
        lost_steps=max(missing, gone - state.quarantined_steps, 0),
        doubled_steps=found.doubled_steps,
        unaccounted_steps=unaccounted_steps(state, actors),
    )


def audit(run: LiveRun, seen: dict[Origin, Witness], deadline: float) -> Audit:
    """Count until all is sound: what a killed Redis forgot comes back with its actors' next messages.

    Args:
        run: the run.
        seen: messages that must still be there.
        deadline: on the monotonic clock; the count at that time stands.
    """
    while True:
        try:
            found = count_again(run, seen)
            if found.sound:
                elsewhere = LearnerNode(run.directory).read()
                findings = examine(run.client(), run.config, run.directory.checkpoints, elsewhere=elsewhere)
                found = Audit(bad_findings=tuple(item.text for item in findings if not item.sound))
        except TRANSIENT_ERRORS as error:
            found = Audit(bad_findings=(f"Redis does not answer: {error}",))
        if found.sound or time.monotonic() > deadline:
            return found
        if run.directory.holder() is None:
            raise RunEnded
        time.sleep(_AUDIT_PAUSE_S)


def read_end(directory: RunDirectory) -> tuple[str, Audit]:
    """How a run ended, and the account that its summary gives; its Redis is gone, `launcher doctor` can count again."""
    try:
        summary = json.loads(directory.summary.read_text(encoding="utf-8"))
        return str(summary["status"]), Audit(unaccounted_steps=int(summary["unaccounted_steps"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return "failed", Audit(bad_findings=(f"{directory.summary}: {type(error).__name__}: {error}",))


def execute(run: LiveRun, role: Role, number: int, *, limit_s: float, say: Callable[[str], None]) -> Drill:
    """Carry out one drill.

    Args:
        run: a run that is up.
        role: what to kill.
        number: of the drill, from 0.
        limit_s: longest time until the role works again, and again until the count is sound.
        say: told what is being killed, before it is.

    Raises:
        NothingToKillNow: it is away, or Redis is.
        NothingLeftToKill: the run is over, or is not up.
        ConfigError, RunDirectoryError: there is nothing that may be killed.
    """
    target, judged, seen, reading = _look_before(run, role, number)
    say(f"killing {role}: {target.name}, process id {target.process.pid}")
    unix_seconds, began = time.time(), time.monotonic()
    if not target.process.kill():
        raise NothingToKillNow(f"--kill {role}: process id {target.process.pid} ended by itself; try again")
    audited, after, ended_as = Audit(), None, None
    back_after_s, shown_by = None, f"still no sign of {target.name}"
    try:
        shown_by = _wait_until_back(run, target, reading, began + limit_s)
        back_after_s = time.monotonic() - began
    except TimeoutError:
        pass
    except RunEnded:
        ended_as, audited = read_end(run.directory)
        shown_by = f"the run {ended_as} meanwhile"
    if ended_as is None:
        try:
            audited = audit(run, seen, time.monotonic() + limit_s)
            after = run.last_evaluation()
        except RunEnded:
            ended_as, audited = read_end(run.directory)
        except TRANSIENT_ERRORS:
            after = None
    return Drill(
        number=number + 1,
        role=role,
        killed=target.name,
        pid=target.process.pid,
        unix_seconds=unix_seconds,
        back_after_s=back_after_s,
        shown_by=shown_by,
        audit=audited,
        success_before=judged.success_any if judged else None,
        success_after=after.success_any if after is not None and after.unix_seconds > unix_seconds else None,
        ended_as=ended_as,
    )


def _look_before(
    run: LiveRun, role: Role, number: int
) -> tuple[Target, Evaluation | None, dict[Origin, Witness], Reading]:
    """What a drill kills, and what it remembers of the run: last evaluation, newest messages, last reading.

    Raises:
        NothingToKillNow, NothingLeftToKill, ConfigError, RunDirectoryError: as `execute`.
    """
    path = run.directory.path
    try:
        reading = run.read()
        if reading is None:
            raise NothingToKillNow(f"{path}: its Redis does not answer; try again")
        if reading.state.phase is Phase.FINISHED:
            raise NothingLeftToKill(f"{path} has finished: there is nothing left to disturb")
        target = find_target(role, reading, number, redis_url=run.config.redis_url)
        judged, seen = run.last_evaluation(), witnesses(run.client(), run.keys)
        return target, judged, seen, run.read() or reading
    except RunEnded as error:
        raise NothingLeftToKill(f"{path} is not running: start it with `launcher up`") from error
    except TRANSIENT_ERRORS as error:
        raise NothingToKillNow(f"{path}: its Redis does not answer ({error}); try again") from error


def _wait_until_back(run: LiveRun, target: Target, before: Reading, deadline: float) -> str:
    """Wait for a role.

    Raises:
        TimeoutError: the deadline came first.
        RunEnded: the run did.
    """
    while target.process.is_alive and time.monotonic() < deadline:
        time.sleep(0.001)
    if target.role not in ("redis", "replay"):
        before = run.read() or before  # nothing that the dead process did may be taken for its successor's work
    back: Reading | None = None
    while time.monotonic() < deadline:
        now = run.read()
        if now is not None:
            if back is None and now.processes.get(target.name) != target.process:
                back = now
            shown = works_again(target, before, back or now, now)
            if shown is not None:
                return shown
        time.sleep(_POLL_S)
    raise TimeoutError
