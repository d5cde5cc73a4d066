"""Put episodes together again from the trajectories that a stream holds.

An actor sends an episode as consecutive trajectories, in order, and many actors' messages lie in a stream between each
other. A piece may be missing: evicted from the front, in quarantine, or never sent by an actor that died.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from replay_service.datasets.episode import Episode
from replay_service.experience import Trajectory

_Key = tuple[int, int]
"""Actor and epoch: an actor works on one episode at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Consecutive steps of one episode, as far as they are there."""

    trajectories: tuple[Trajectory, ...]
    """In order, without a gap between them."""

    @property
    def begins_episode(self) -> bool:
        """Whether the first step is the episode's first."""
        return self.trajectories[0].origin.first_step == 0

    @property
    def ends_episode(self) -> bool:
        """Whether the last step is the episode's last."""
        return self.trajectories[-1].ends_episode

    @property
    def is_whole(self) -> bool:
        """Whether no step of the episode is missing."""
        return self.begins_episode and self.ends_episode

    def episode(self) -> Episode:
        """The steps as one episode; one whose end is missing is truncated there."""
        first, last = self.trajectories[0], self.trajectories[-1]
        return Episode(
            observations=np.concatenate([first.observations[:1], *(t.observations[1:] for t in self.trajectories)]),
            actions=np.concatenate([t.actions for t in self.trajectories]),
            rewards=np.concatenate([t.rewards for t in self.trajectories]),
            terminated=last.terminated,
            truncated=last.truncated or not last.ends_episode,
        )


def assemble(trajectories: Iterable[Trajectory]) -> Iterator[Stretch]:
    """Join trajectories to stretches, each given out as soon as nothing can be added to it.

    Args:
        trajectories: in the order of their stream; those of one actor and epoch are in the order of their steps.
    """
    growing: dict[_Key, list[Trajectory]] = {}
    for trajectory in trajectories:
        key = (trajectory.origin.actor_id, trajectory.origin.epoch)
        held = growing.get(key)
        if held is not None and not _follows(held[-1], trajectory):
            yield Stretch(tuple(held))
            held = None
        if held is None:
            held = growing[key] = []
        held.append(trajectory)
        if trajectory.ends_episode:
            yield Stretch(tuple(growing.pop(key)))
    for held in growing.values():
        yield Stretch(tuple(held))


def _follows(before: Trajectory, after: Trajectory) -> bool:
    return (
        before.origin.episode == after.origin.episode
        and before.origin.first_step + before.num_steps == after.origin.first_step
        and bool(np.array_equal(before.observations[-1], after.observations[0]))
    )
