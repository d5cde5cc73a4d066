"""What is in a dataset, counted from its episodes as they are stored; pure but for reading the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from replay_service.datasets.episode import AnyArray, RawEpisode
from replay_service.datasets.loading import read_stored
from replay_service.datasets.metadata import read_metadata
from replay_service.errors import DatasetError
from replay_service.tasks import TASKS, Task


@dataclass(slots=True)
class ArrayFacts:
    """One array over all episodes."""

    widths: set[int] = field(default_factory=set)
    """Values a step: one number, unless the file is at odds with itself."""
    dtypes: set[str] = field(default_factory=set)
    lowest: float = np.inf
    highest: float = -np.inf
    values: int = 0
    not_finite: int = 0
    """Values that are NaN or infinite."""

    def add(self, array: AnyArray) -> None:
        """Take in an episode's array, (T,) or (T, W)."""
        self.widths.add(int(np.prod(array.shape[1:], dtype=np.int64)))
        self.dtypes.add(str(array.dtype))
        finite = array[np.isfinite(array)]
        self.values += array.size
        self.not_finite += array.size - finite.size
        if finite.size:
            self.lowest = min(self.lowest, float(finite.min()))
            self.highest = max(self.highest, float(finite.max()))


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What the episodes are worth in one of the three binary tasks, recomputed from the observations."""

    returns: tuple[float, ...]
    """Of each episode."""
    success_any: float
    """Share of episodes with the goal met at any step."""
    success_final: float
    """Share of episodes with the goal met at the last step."""
    success_fraction: float
    """Share of all steps at which the goal was met."""


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What is in a dataset."""

    source: str
    path: Path
    form: str
    """The format, in words."""
    metadata: dict[str, str]
    lengths: tuple[int, ...]
    """Steps of each episode."""
    stored_returns: tuple[float, ...]
    """Undiscounted sum of the stored rewards of each episode that has rewards; NaN when one of them is."""
    terminated: int
    truncated: int
    observations: ArrayFacts
    actions: ArrayFacts
    rewards: ArrayFacts
    actions_outside: float
    """Share of action values outside the bounds."""
    task: TaskFacts | None
    """None when the observations are not those of the task that was asked for."""

    @property
    def dimensions(self) -> tuple[int, int] | None:
        """Observation and action values a step, or None when episodes differ."""
        if len(self.observations.widths) != 1 or len(self.actions.widths) != 1:
            return None
        return next(iter(self.observations.widths)), next(iter(self.actions.widths))

    def contradictions(self) -> list[str]:
        """What the file says about itself against what is in it."""
        found = []
        for name, counted in (("total_episodes", len(self.lengths)), ("total_steps", sum(self.lengths))):
            said = self.metadata.get(name)
            if said is not None and said != str(counted):
                found.append(f"the metadata say {name} {said}, the file holds {counted}")
        for name, facts in (("observations", self.observations), ("actions", self.actions), ("rewards", self.rewards)):
            if len(facts.widths) > 1:
                found.append(f"{name} have {', '.join(map(str, sorted(facts.widths)))} values a step")
            if facts.not_finite:
                found.append(f"{name}: {facts.not_finite} of {facts.values} values are NaN or infinite")
        return found


def guess_task(observation_dim: int, action_dim: int) -> Task | None:
    """The binary task with these dimensions; no two have the same."""
    fitting = [
        task for task in TASKS.values() if (task.observation_dim, task.action_dim) == (observation_dim, action_dim)
    ]
    return fitting[0] if fitting else None


def inspect_dataset(
    source: str, *, task: Task | None = None, bounds: tuple[Sequence[float], Sequence[float]] = ((), ())
) -> DatasetFacts:
    """Read a dataset of any format that `--dataset` takes, and count.

    One episode is held at a time. Where a format stores no final observation, the readers have dropped the last step
    of an episode, as for a run.

    Args:
        source: a path or a Minari id.
        task: the binary task to judge the episodes by; None: the one that the dimensions speak for, if any.
        bounds: (low, high) of the actions, A values each; empty for -1 and 1.

    Raises:
        DatasetError: the source is missing, damaged, or holds no episode.
    """
    path, episodes = read_stored(source)
    try:
        count = _count(source, episodes, task, bounds)
    except MemoryError as error:
        raise DatasetError(f"{source}: expected episodes that fit into this machine's memory") from error
    form, metadata = read_metadata(path)
    return DatasetFacts(
        source=source,
        path=path,
        form=form,
        metadata=metadata,
        lengths=tuple(count.lengths),
        stored_returns=tuple(count.stored_returns),
        terminated=count.terminated,
        truncated=count.truncated,
        observations=count.observations,
        actions=count.actions,
        rewards=count.rewards,
        actions_outside=count.outside / max(1, count.actions.values),
        task=count.task_facts(),
    )


def _count(
    source: str, episodes: Iterator[RawEpisode], task: Task | None, bounds: tuple[Sequence[float], Sequence[float]]
) -> _Count:
    first = next(episodes, None)
    if first is None:
        raise DatasetError(f"{source}: expected at least one episode, got none")
    if task is None and first.observations.ndim == first.actions.ndim == 2:
        task = guess_task(first.observations.shape[1], first.actions.shape[1])
    count = _Count(task, bounds)
    # NaN, infinity and values beyond float32 are what is looked for, and no reason to warn.
    with np.errstate(all="ignore"):
        for index, episode in enumerate(chain([first], episodes)):
            _check_rows(episode, f"{source}, episode {index}")
            count.add(episode)
    return count


def _check_rows(episode: RawEpisode, where: str) -> None:
    steps = len(episode.actions)
    if len(episode.observations) != steps + 1:
        raise DatasetError(
            f"{where}: expected {steps + 1} observations for {steps} actions, got {len(episode.observations)}"
        )
    if episode.rewards is not None and episode.rewards.shape[:1] != (steps,):
        raise DatasetError(f"{where}: rewards: expected {steps} rows, got shape {episode.rewards.shape}")


class _Count:
    """Sums over the episodes."""

    def __init__(self, task: Task | None, bounds: tuple[Sequence[float], Sequence[float]]) -> None:
        self._task = task
        self._low = np.asarray(bounds[0] or -1.0, dtype=np.float32)
        self._high = np.asarray(bounds[1] or 1.0, dtype=np.float32)
        self._successes: list[npt.NDArray[np.bool_]] = []
        self.lengths: list[int] = []
        self.stored_returns: list[float] = []
        self.terminated = self.truncated = self.outside = 0
        self.observations, self.actions, self.rewards = ArrayFacts(), ArrayFacts(), ArrayFacts()

    def add(self, episode: RawEpisode) -> None:
        self.lengths.append(len(episode.actions))
        self.terminated += episode.terminated
        self.truncated += episode.truncated
        self.observations.add(episode.observations)
        self.actions.add(episode.actions)
        if episode.rewards is not None:
            self.rewards.add(episode.rewards)
            self.stored_returns.append(float(np.sum(episode.rewards, dtype=np.float64)))
        if self._low.ndim == 0 or episode.actions.shape[1:] == self._low.shape:
            actions = episode.actions.astype(np.float32)
            self.outside += int(np.count_nonzero((actions < self._low) | (actions > self._high)))
        self._judge(episode)

    def _judge(self, episode: RawEpisode) -> None:
        if self._task is None or episode.observations.shape[1:] != (self._task.observation_dim,):
            return
        observations = episode.observations[:-1] if episode.final_is_copy else episode.observations
        # From float32, as the loader computes the rewards of a run.
        self._successes.append(self._task.success(observations[1:].astype(np.float32)))

    def task_facts(self) -> TaskFacts | None:
        """The task's view, when every episode has its observations and a step."""
        if len(self._successes) < len(self.lengths) or any(not len(steps) for steps in self._successes):
            return None
        return TaskFacts(
            returns=tuple(float(np.count_nonzero(steps)) - len(steps) for steps in self._successes),
            success_any=float(np.mean([steps.any() for steps in self._successes])),
            success_final=float(np.mean([steps[-1] for steps in self._successes])),
            success_fraction=float(np.concatenate(self._successes).mean()),
        )
