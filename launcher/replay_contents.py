"""What lies in a run's streams: pick trajectories or episodes, and show them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from launcher.replay_filter import Origin, ReplayFilter, Worth, worth_of
from launcher.wording import percent
from replay_service.config import RunConfig
from replay_service.episode_assembly import Stretch
from replay_service.errors import ConfigError
from replay_service.experience import SEED_ACTOR_ID, ExperienceSpec, FloatArray
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.tasks import Task, find_task
from replay_service.trajectory_stream import BadEntry, StreamEntry, parse_entry

_PAGE = 256
_SEED_PREFIX = "seed/"


@dataclass(slots=True)
class Skipped:
    """Messages that could not be read; `launcher doctor` names them."""

    count: int = 0


def read_stream(client: RedisClient, stream: str, spec: ExperienceSpec, skipped: Skipped) -> Iterator[StreamEntry]:
    """Yield what a stream holds now, oldest first; what is appended meanwhile is left out."""
    newest = client.xrevrange(stream, count=1)
    cursor, last = "-", newest[0][0].decode() if newest else ""
    while last and (page := client.xrange(stream, min=cursor, max=last, count=_PAGE)):
        for raw_id, fields in page:
            entry = parse_entry(raw_id.decode(), fields, spec)
            if isinstance(entry, BadEntry):
                skipped.count += 1
            else:
                yield entry
        cursor = f"({page[-1][0].decode()}"


def stream_key(keys: Keys, origin: Origin) -> str:
    """The Redis key of a stream."""
    return keys.seed if origin == "seed" else keys.online


def entry_name(origin: Origin, entry_id: str) -> str:
    """How an entry is named on the command line."""
    return f"{_SEED_PREFIX}{entry_id}" if origin == "seed" else entry_id


@dataclass(slots=True)
class _Sums:
    """Of the listed trajectories."""

    trajectories: int = 0
    steps: int = 0
    succeeded: int = 0
    returns: list[float] = field(default_factory=list)
    actors: set[int] = field(default_factory=set)
    versions: set[int] = field(default_factory=set)

    def add(self, stretch: Stretch, worth: Worth) -> None:
        origin = stretch.trajectories[0].origin
        self.trajectories += 1
        self.steps += stretch.trajectories[0].num_steps
        self.succeeded += bool(worth.success_any)
        self.returns.append(worth.total)
        self.actors.add(origin.actor_id)
        self.versions.add(origin.policy_version)


def list_trajectories(client: RedisClient, run: RunConfig, chosen: ReplayFilter, *, limit: int, console: Console
                      ) -> None:  # fmt: skip
    """Print the newest trajectories that a filter admits, and a line about all of them.

    Args:
        client: the run's Redis.
        run: its configuration.
        chosen: the filter, applied to each trajectory by itself: to a part of an episode, when episodes were sent in
            parts.
        limit: most rows; 0 for all.
        console: where to print.

    Raises:
        ConfigError: the filter asks what the data cannot answer.
    """
    chosen.check(run)
    keys, task, skipped, sums = Keys(run.run_id), find_task(run.env), Skipped(), _Sums()
    rows: list[tuple[str, ...]] = []
    for origin in chosen.streams:
        for entry in read_stream(client, stream_key(keys, origin), run.spec, skipped):
            stretch = Stretch((entry.trajectory,))
            worth = worth_of(stretch, task)
            if chosen.admits(stretch, worth):
                sums.add(stretch, worth)
                rows.append(_row(origin, entry, worth))
                if limit and len(rows) > 2 * limit:
                    del rows[:-limit]
    if rows:
        console.print(_table(rows[-limit:] if limit else rows))
    console.print(_summary(sums, task, skipped), highlight=False, soft_wrap=True)


def find_entry(client: RedisClient, run: RunConfig, name: str) -> StreamEntry:
    """One entry by the name that `launcher replay ls` shows.

    Raises:
        ConfigError: there is no such entry, or it is damaged.
    """
    origin: Origin = "seed" if name.startswith(_SEED_PREFIX) else "online"
    entry_id = name.removeprefix(_SEED_PREFIX)
    if not _is_entry_id(entry_id):
        raise ConfigError(f"expected an entry as `launcher replay ls` names it, as in 1700000000000-0, got {name!r}")
    found = client.xrange(stream_key(Keys(run.run_id), origin), min=entry_id, max=entry_id)
    if not found:
        raise ConfigError(f"there is no entry {name} (any more): the oldest are evicted; see `launcher replay ls`")
    entry = parse_entry(entry_id, found[0][1], run.spec)
    if isinstance(entry, BadEntry):
        raise ConfigError(f"entry {name} is damaged: {entry.reason}")
    return entry


def _is_entry_id(text: str) -> bool:
    """Whether Redis takes a text as the name of an entry: two numbers of 64 bits in the digits of ASCII."""
    found = re.fullmatch(r"([0-9]{1,20})-([0-9]{1,20})", text)
    return found is not None and all(int(number) < 2**64 for number in found.groups())


def show_trajectory(entry: StreamEntry, run: RunConfig, *, ends: int, console: Console) -> None:
    """Print one trajectory: where it comes from, what it achieved, its first and last steps.

    Args:
        entry: the trajectory.
        run: the run's configuration.
        ends: steps shown from each end; 0 for all.
        console: where to print.
    """
    trajectory, task = entry.trajectory, find_task(run.env)
    origin, steps = trajectory.origin, trajectory.num_steps
    worth = worth_of(Stretch((trajectory,)), task)
    goal = task.success(trajectory.observations[1:]) if task else None
    facts = [
        ("entry", f"{entry.entry_id}, stored {_moment(entry.entry_id)}"),
        ("origin", f"actor {origin.actor_id}, epoch {origin.epoch}, message {origin.sequence}"
                   if origin.actor_id != SEED_ACTOR_ID else f"offline dataset, episode {origin.sequence}"),
        ("episode", f"{origin.episode}, steps {origin.first_step} to {origin.first_step + steps - 1}; {_end(entry)}"),
        ("policy version", str(origin.policy_version)),
        ("return", f"{worth.total:g}"),
    ]  # fmt: skip
    if goal is not None:
        first = int(np.argmax(goal)) + origin.first_step if goal.any() else None
        met = f"met at {int(goal.sum())} of {steps} steps" + (f", first at step {first}" if first is not None else "")
        facts.append(("goal", f"{met}; {'met' if worth.success_final else 'not met'} at the last"))
    facts.append(("observations", _describe(trajectory.observations)))
    facts.append(("actions", f"{_describe(trajectory.actions)}; {_outside(trajectory.actions)} outside [-1, 1]"))
    width = max(len(name) for name, _text in facts)
    for name, text in facts:
        console.print(f"{name:>{width}}  {text}", highlight=False, soft_wrap=True)
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for name in ("step", "reward", *(["goal"] if goal is not None else []), "largest action", "move of observation"):
        table.add_column(name, justify="right")
    moves = np.linalg.norm(np.diff(trajectory.observations, axis=0), axis=1)
    for index in _shown(steps, ends):
        if index is None:
            table.add_row("...")
            continue
        mark = ["met" if goal[index] else "-"] if goal is not None else []
        table.add_row(str(origin.first_step + index), f"{trajectory.rewards[index]:g}", *mark,
                      f"{np.abs(trajectory.actions[index]).max():.3f}", f"{moves[index]:.4f}")  # fmt: skip
    console.print(table)


def _shown(steps: int, ends: int) -> Sequence[int | None]:
    """Indices of the first and last steps, and None for those between."""
    if ends == 0 or steps <= 2 * ends:
        return range(steps)
    return [*range(ends), None, *range(steps - ends, steps)]


def _row(origin: Origin, entry: StreamEntry, worth: Worth) -> tuple[str, ...]:
    trajectory = entry.trajectory
    came_from = trajectory.origin
    goal = "-"
    if worth.success_any is not None:
        goal = "last" if worth.success_final else "met" if worth.success_any else "no"
    return (
        entry_name(origin, entry.entry_id),
        "dataset" if came_from.actor_id == SEED_ACTOR_ID else f"{came_from.actor_id}.{came_from.epoch}",
        str(came_from.episode),
        f"{came_from.first_step}-{came_from.first_step + trajectory.num_steps - 1}",
        str(came_from.policy_version),
        f"{worth.total:g}",
        goal,
        _end(entry),
    )


def _table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Fits 80 columns; an entry's name is never cut, because it is what `launcher replay show` is given."""
    table = Table(box=None, header_style="dim", padding=(0, 1))
    table.add_column("entry", justify="right", no_wrap=True, min_width=max(len(row[0]) for row in rows))
    for name in ("actor", "episode", "steps", "version", "return", "goal", "end"):
        table.add_column(name, justify="left" if name in ("goal", "end") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _summary(sums: _Sums, task: Task | None, skipped: Skipped) -> str:
    damaged = f"; damaged messages left out: {skipped.count}, see `launcher doctor`" if skipped.count else ""
    if not sums.trajectories:
        return f"no trajectory fits{damaged}"
    parts = [
        "1 trajectory" if sums.trajectories == 1 else f"{sums.trajectories:,} trajectories",
        f"{sums.steps:,} steps",
        _sources(sums.actors),
        f"versions {min(sums.versions)} to {max(sums.versions)}",
        f"return {min(sums.returns):g} to {max(sums.returns):g}, mean {np.mean(sums.returns):g}",
    ]
    if task is not None:
        parts.append(f"goal met in {percent(sums.succeeded / sums.trajectories)}")
    return ", ".join(parts) + damaged


def _sources(actors: set[int]) -> str:
    count = len(actors - {SEED_ACTOR_ID})
    of_actors = [f"{count} actor{'' if count == 1 else 's'}"] if count else []
    return " and ".join([*of_actors, *(["the dataset"] if SEED_ACTOR_ID in actors else [])])


def _end(entry: StreamEntry) -> str:
    trajectory = entry.trajectory
    if trajectory.terminated:
        return "terminated"
    return (
        "truncated" if trajectory.truncated else "goes on" if trajectory.origin.actor_id != SEED_ACTOR_ID else "stops"
    )


def _moment(entry_id: str) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(entry_id.partition("-")[0]) / 1000))


def _describe(array: FloatArray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}, {array.min():g} to {array.max():g}, mean {array.mean():g}"


def _outside(actions: FloatArray) -> str:
    return percent(float((np.abs(actions) > 1.0).mean()))
