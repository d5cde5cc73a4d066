"""Episodes as the rest of the project sees them, and as the readers find them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replay_service.experience import FloatArray

AnyArray = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """A checked episode of T steps."""

    observations: FloatArray
    """(T+1, O) float32."""
    actions: FloatArray
    """(T, A) float32."""
    rewards: FloatArray
    """(T,) float32."""
    terminated: bool
    """A terminal state was reached after the last step."""
    truncated: bool
    """A time limit cut the episode after the last step; when both are false the recording just stops."""


@dataclass(frozen=True, slots=True, eq=False)
class RawEpisode:
    """An episode as a file stores it: numbers of any type, as wide as the environment's; the rest is unchecked."""

    observations: AnyArray
    """(T+1, O), the final observation included."""
    actions: AnyArray
    """(T, A)."""
    rewards: AnyArray | None
    """(T,), or None when the file stores none."""
    terminated: bool
    truncated: bool
    final_is_copy: bool = False
    """The observation after a terminal step was not stored; the last row repeats the one before."""


@dataclass(frozen=True, slots=True, eq=False)
class OfflineDataset:
    """Episodes from one or several sources, in order."""

    episodes: tuple[Episode, ...]
    sources: tuple[str, ...]
    """What the user named."""

    @property
    def fingerprint(self) -> str:
        """Thirty-two hex digits over the contents alone: equal for the same episodes in any file format."""
        digest = hashlib.sha256()
        for episode in self.episodes:
            digest.update(repr((episode.observations.shape, episode.actions.shape)).encode())
            for array in (episode.observations, episode.actions, episode.rewards):
                digest.update(np.ascontiguousarray(array).tobytes())
            digest.update(bytes([episode.terminated, episode.truncated]))
        return digest.hexdigest()[:32]

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @property
    def num_steps(self) -> int:
        """Environment steps in all episodes."""
        return sum(len(episode.rewards) for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Share of episodes with a reward of 0 or more at any step; meaningful for the binary tasks only."""
        return float(np.mean([bool((episode.rewards >= 0.0).any()) for episode in self.episodes]))

    @property
    def mean_return(self) -> float:
        """Mean undiscounted return of an episode."""
        return float(np.mean([episode.rewards.sum() for episode in self.episodes]))
