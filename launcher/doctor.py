"""`launcher doctor`: prove from the data themselves that a run is sound, a line a finding.

Counters are never trusted alone: streams are read again and counted, messages decoded, positions and sequences
followed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.numpy

from launcher.former_settings import former_numbers
from launcher.learner_node import NotedNode
from launcher.run_directory import RunDirectory
from replay_service.config import RunConfig
from replay_service.errors import WireError
from replay_service.experience import ExperienceSpec
from replay_service.keys import Keys
from replay_service.rate_limiter import env_steps_allowed
from replay_service.redis_client import RedisClient, StreamRecord
from replay_service.reports import ActorLedger, Reports
from replay_service.run_state import Phase, RunState, RunStateStore
from replay_service.seeding import seed_info
from replay_service.trajectory_stream import BadEntry, parse_entry
from replay_service.weights_channel import WeightsChannel

_PAGE = 256


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    sound: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok ' if self.sound else 'BAD'}  {self.text}"


@dataclass(slots=True)
class Recount:
    """What a stream holds, counted entry by entry."""

    entries: int = 0
    steps: int = 0
    bad: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    doubled_steps: int = 0
    sequence_gaps: list[str] = field(default_factory=list)
    missing_positions: int = 0
    """Steps that lie between the positions of neighbouring entries: taken out as malformed, or lost."""
    by_actor: Counter[int] = field(default_factory=Counter)
    origins: set[tuple[int, int, int]] = field(default_factory=set)
    """Actor, epoch and sequence of every sound message."""


@dataclass(frozen=True, slots=True)
class FormerSettings:
    """What the run was allowed before it was resumed with other settings; what it did then was right then."""

    budgets: list[int] = field(default_factory=list)
    """Values of `num_env_steps`."""
    initial_env_steps: list[int] = field(default_factory=list)

    @staticmethod
    def read(run: RunDirectory) -> FormerSettings:
        """As the launcher's log has them."""
        log = run.launcher_log
        return FormerSettings(former_numbers(log, "num_env_steps"), former_numbers(log, "initial_env_steps"))


def recount(client: RedisClient, stream: str, spec: ExperienceSpec, *, before: int | None = None) -> Recount:
    """Read a stream again and follow its sequences and positions; `before` ends the count at that position."""
    found = Recount()
    last_sequence: dict[tuple[int, int], int] = {}
    next_position: int | None = None
    for raw_id, fields in _entries(client, stream):
        entry = parse_entry(raw_id.decode(), fields, spec)
        if before is not None and not isinstance(entry, BadEntry) and entry.first_step >= before:
            break  # appended after the counters were read: the run is live
        found.entries += 1
        if isinstance(entry, BadEntry):
            found.bad.append(f"{entry.entry_id}: {entry.reason}")
            continue
        origin, steps = entry.trajectory.origin, entry.trajectory.num_steps
        found.steps += steps
        found.by_actor[origin.actor_id] += steps
        name = f"actor {origin.actor_id} epoch {origin.epoch} sequence {origin.sequence}"
        if (key := (origin.actor_id, origin.epoch, origin.sequence)) in found.origins:
            found.doubled.append(name)
            found.doubled_steps += steps
        found.origins.add(key)
        previous = last_sequence.get(key[:2])
        if previous is not None and origin.sequence > previous + 1:
            found.sequence_gaps.append(f"{name} follows {previous}")
        last_sequence[key[:2]] = origin.sequence
        if next_position is not None:
            found.missing_positions += entry.first_step - next_position
        next_position = entry.first_step + steps
    return found


def examine(
    client: RedisClient, run: RunConfig, checkpoints: Path, *, elsewhere: NotedNode | None = None
) -> list[Finding]:
    """Look at everything that a run has in Redis, and at its newest checkpoint.

    Args:
        client: of the run's Redis.
        run: its configuration.
        checkpoints: the folder in the launcher's run directory.
        elsewhere: the node that has the checkpoints instead.
    """
    keys = Keys(run.run_id)
    state, actors = Reports(client, keys).state_and_actors()
    online = recount(client, keys.online, run.spec, before=state.appended_steps)
    # Of a live run, trajectories may have been evicted between the reading of the counters and of the stream.
    evicted_meanwhile = RunStateStore(client, keys).read().appended_steps > state.appended_steps
    former = FormerSettings.read(RunDirectory(checkpoints.parent))
    findings = [_spec(state, run), _seed(client, keys, run.spec, state.phase)]
    findings += [*_messages(online, state, live=evicted_meanwhile), *_ledger(state, actors, online)]
    findings += [*_limiter(state, run, former, len(actors)), _weights(client, keys, state)]
    return [*findings, checkpoint_finding(checkpoints, state, elsewhere), *resume_findings(checkpoints)]


def _entries(client: RedisClient, stream: str) -> Iterator[StreamRecord]:
    cursor = "-"
    while page := client.xrange(stream, min=cursor, count=_PAGE):
        yield from page
        cursor = f"({page[-1][0].decode()}"


def _spec(state: RunState, run: RunConfig) -> Finding:
    expected = run.spec.fingerprint
    return Finding(state.spec_fingerprint == expected, f"spec: Redis {state.spec_fingerprint}, config.toml {expected}")


def _seed(client: RedisClient, keys: Keys, spec: ExperienceSpec, phase: Phase) -> Finding:
    info = seed_info(client, keys)
    if info is None and phase is not Phase.SEEDING:
        return Finding(False, "seed data: the stream was never completely filled")
    found = recount(client, keys.seed, spec)
    if info is None:
        # Nobody learns from it yet, and a seeding that was interrupted is begun again by a resume.
        return Finding(
            not found.bad,
            f"seed data: still being filled, {found.steps:,} transitions counted so far; {len(found.bad)} bad",
        )
    sound = found.steps == info.steps and not found.bad and found.missing_positions == 0
    return Finding(
        sound, f"seed data: {found.steps:,} transitions counted, {info.steps:,} recorded; {len(found.bad)} bad"
    )


def _messages(online: Recount, state: RunState, *, live: bool) -> list[Finding]:
    def listed(problems: list[str]) -> str:
        return f"{len(problems)}" + (f" ({'; '.join(problems[:3])})" if problems else "")

    # A message in quarantine leaves a hole in sequence and position; more holes than that are losses.
    unexplained = max(0, online.missing_positions - state.quarantined_steps)
    gaps = len(online.sequence_gaps) > state.quarantined_messages
    return [
        Finding(
            not online.bad, f"messages: {online.entries:,} decoded, malformed or not of this run {listed(online.bad)}"
        ),
        Finding(not online.doubled, f"doubled messages: {listed(online.doubled)}"),
        Finding(not gaps, f"gaps in actors' sequences: {listed(online.sequence_gaps)}"),
        Finding(unexplained == 0, f"steps missing between messages: {unexplained:,} beyond those in quarantine"),
        Finding(
            online.steps == state.retained_steps or (live and online.steps <= state.retained_steps),
            f"transitions in the stream: {online.steps:,} counted, {state.retained_steps:,} recorded",
        ),
    ]


def _ledger(state: RunState, actors: list[ActorLedger], online: Recount) -> list[Finding]:
    stored, quarantined = sum(a.stored_steps for a in actors), sum(a.quarantined_steps for a in actors)
    evicted = state.env_steps - state.retained_steps
    findings = [
        Finding(
            state.env_steps == stored,
            f"ledger: {state.env_steps:,} env steps, {stored:,} stored by {len(actors)} actors",
        ),
        Finding(
            state.quarantined_steps == quarantined,
            f"ledger: {state.quarantined_steps:,} steps in quarantine, {quarantined:,} by the actors' accounts",
        ),
        Finding(
            state.leased_steps == sum(a.lease for a in actors),
            f"leases: {state.leased_steps:,} steps, {sum(a.lease for a in actors):,} by the actors' accounts",
        ),
    ]
    findings += [
        Finding(False, f"actor {a.actor_id}: its account holds no number in {', '.join(a.damaged)}")
        for a in actors
        if a.damaged
    ]
    wrong = [a.actor_id for a in actors if online.by_actor[a.actor_id] > a.stored_steps]
    if evicted == 0:
        wrong = [a.actor_id for a in actors if online.by_actor[a.actor_id] != a.stored_steps]
    text = "counted in the stream as in their accounts" if not wrong else f"disagree for {wrong[:10]}"
    findings.append(Finding(not wrong, f"each actor's steps: {text} ({evicted:,} steps evicted since)"))
    return findings


def _limiter(state: RunState, run: RunConfig, former: FormerSettings, actors: int) -> list[Finding]:
    if state.phase in (Phase.SEEDING, Phase.PRETRAINING):
        return [
            Finding(state.env_steps == 0, f"limiter: no env steps before the online phase, got {state.env_steps:,}")
        ]
    # What was allowed once stays allowed: the fewest initial steps of any time allow the most updates. A budget that
    # is smaller than they are stands in their place (`RunStateStore.initialise`).
    initial = min([state.initial_env_steps, *former.initial_env_steps, *former.budgets])
    before = f" from {initial:,} env steps on, as before a resume" if initial < state.initial_env_steps else ""
    owed = math.floor(run.utd_ratio * max(0, state.env_steps - initial))
    allowed = env_steps_allowed(
        online_grad_steps=state.online_grad_steps,
        utd_ratio=run.utd_ratio,
        initial_env_steps=state.initial_env_steps,
        tolerance=run.tolerance_env_steps,
    )
    ahead = max(0, state.env_steps + state.leased_steps - allowed)
    return [
        Finding(
            state.online_grad_steps <= owed, f"limiter: {state.online_grad_steps:,} updates of {owed:,} allowed{before}"
        ),
        # No error: a learner that was restored from a checkpoint has fewer updates than before and catches up.
        Finding(True, f"limiter: actors ahead by {ahead:,} steps beyond the band"),
        _budget(state, run, former, actors),
    ]


def _budget(state: RunState, run: RunConfig, former: FormerSettings, actors: int) -> Finding:
    """Steps over the budget are no error while each actor can have stored one message behind a lapsed lease.

    An actor that was cut off loses its lease to others, and what it stores once it is back is kept all the same.
    """
    budget = max([state.num_env_steps, *former.budgets])
    over, explained = max(0, state.env_steps - budget), actors * run.rollout_length
    text = f"budget: {state.env_steps:,} of {state.num_env_steps:,} env steps"
    if state.env_steps > state.num_env_steps and budget > state.num_env_steps:
        text += f", which were {budget:,} before a resume"
    if over:
        text += f", {over:,} over it, of which lapsed leases explain up to {explained:,}"
    return Finding(over <= explained, text)


def _weights(client: RedisClient, keys: Keys, state: RunState) -> Finding:
    try:
        policy = WeightsChannel(client, keys).fetch()
    except WireError as error:
        return Finding(False, f"weights: cannot be decoded: {error}")
    version = 0 if policy is None else policy.version
    return Finding(version >= state.policy_version, f"weights: version {version}, announced {state.policy_version}")


def checkpoint_finding(folder: Path, state: RunState, elsewhere: NotedNode | None = None) -> Finding:
    """Whether the newest checkpoint has the hashes of its manifest, or is rightly absent."""
    if elsewhere:
        return Finding(True, f"checkpoint: not looked at, the learner keeps them on {elsewhere.address}")
    newest = max(folder.glob("step-*"), default=None)
    if newest is None:
        return Finding(state.policy_version == 0, "checkpoint: none yet")
    try:
        manifest = json.loads((newest / "manifest.json").read_text(encoding="utf-8"))
        tensors = safetensors.numpy.load_file(newest / "state.safetensors")
        wrong = [n for n, h in manifest["sha256"].items() if hashlib.sha256(tensors[n].tobytes()).hexdigest() != h]
    except Exception as error:  # a damaged file raises many types, safetensors' own among them
        return Finding(False, f"checkpoint {newest.name}: unreadable: {type(error).__name__}: {error}")
    return Finding(not wrong, f"checkpoint {newest.name}: {len(tensors)} tensors, {len(wrong)} with another hash")


def resume_findings(folder: Path) -> list[Finding]:
    """What the learner proved when it was last restored; nothing for a run that never was."""
    try:
        proof = json.loads((folder / "restored.json").read_text(encoding="utf-8"))
        tensors, lacking = sum(proof["tensors"].values()), proof["stream_position"] - proof["stream_position_found"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [Finding(False, f"resume: restored.json is unreadable: {type(error).__name__}: {error}")]
    generator = "the generator went on" if proof["generator"] else "the generator began anew on another kind of device"
    stream = f"the stream lacked {lacking:,} steps then" if lacking > 0 else "the stream lacked nothing"
    text = f"{proof['checkpoint']} restored, {tensors} tensors with the hashes of its manifest, {generator}, {stream}"
    return [Finding(True, f"last resume: {text}")]
