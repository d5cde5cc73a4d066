"""The replay mirror: every transition that Redis retains, as preallocated tensors on the learner's device.

Sampling never leaves the device and does the same operations every time, so that a CUDA graph can hold it: where the
data lie is read from tensors. A batch is one draw of indices and one gather, because a transition is one row of one
matrix, [s, a, s', reward, discount]; rows lie far apart in memory, and each is fetched once.

The mirror holds the seed data in rows [0, S) and the online data in a ring of rows [S, S + C). It evicts whole
trajectories by the rule that `append.lua` uses, so it holds what the stream holds, and a mirror rebuilt from the stream
has every transition in the row where the old one had it. (A quarantined message takes no row: a mirror that is rebuilt
after one has the same transitions in the same order, some rows further.)
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from replay_service.experience import FloatArray, Trajectory

_FAR = 2**62


class TransitionBatch(NamedTuple):
    """B transitions, possibly of several steps each."""

    observations: Tensor
    """(B, O) float32."""
    actions: Tensor
    """(B, A) float32, as stored, not clipped."""
    rewards: Tensor
    """(B,) float32, discounted sum over the steps of the transition."""
    discounts: Tensor
    """(B,) float32, gamma^n; 0 after a terminal state when terminals are used."""
    next_observations: Tensor
    """(B, O) float32, n steps later."""


class Transitions(NamedTuple):
    """T transitions of one trajectory, as NumPy arrays with the fields of `TransitionBatch`."""

    observations: FloatArray
    actions: FloatArray
    rewards: FloatArray
    discounts: FloatArray
    next_observations: FloatArray


def n_step_transitions(trajectory: Trajectory, *, n_step: int, discount: float, use_terminals: bool) -> Transitions:
    """Turn a trajectory's T steps into T transitions of up to `n_step` steps.

        R_t = sum_{i<k} gamma^i r_{t+i},   s'_t = s_{t+k},   discount_t = gamma^k,   k = min(n, T - t)

    Towards the end of the trajectory k shrinks: the bootstrap then comes earlier, from the last observation. The
    discount is 0 where the transition ends in a terminal state and `use_terminals` holds; a time limit never
    stops the bootstrap.
    """
    steps = trajectory.num_steps
    starts = np.arange(steps)
    lengths = np.minimum(n_step, steps - starts)
    rewards = np.zeros(steps, dtype=np.float64)
    for i in range(min(n_step, steps)):
        reachable = starts[: steps - i]
        rewards[: steps - i] += discount**i * trajectory.rewards[reachable + i]
    ends = starts + lengths
    discounts = discount ** lengths.astype(np.float64)
    if use_terminals and trajectory.terminated:
        discounts[ends == steps] = 0.0
    return Transitions(
        observations=trajectory.observations[:-1],
        actions=trajectory.actions,
        rewards=rewards.astype(np.float32),
        discounts=discounts.astype(np.float32),
        next_observations=trajectory.observations[1:] if n_step == 1 else trajectory.observations[ends],
    )


class _Window(NamedTuple):
    """Which transitions are sampled; int64 scalars on the device."""

    size: Tensor
    seed_size: Tensor
    online_size: Tensor
    first_seed: Tensor
    """Row of the oldest seed transition that is sampled."""
    first_online: Tensor
    """Logical index of the oldest online transition that is sampled."""


class ReplayMirror:
    """Seed rows and an online ring, sampled together.

    Args:
        seed_steps: S, transitions of the offline data.
        capacity: C, most online transitions that are kept.
        evict_seed: whether seed and online data share the capacity, first in first out.
        device: where the tensors live.
    """

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        seed_steps: int,
        capacity: int,
        evict_seed: bool,
        device: torch.device,
    ) -> None:
        rows = seed_steps + capacity
        self._seed_steps = seed_steps
        self._capacity = capacity
        self._evict_seed = evict_seed
        self._device = device
        self._columns = (observation_dim, action_dim, observation_dim, 1, 1)
        self._transitions = _zeros(rows, sum(self._columns), device)
        self._seed_filled = 0
        self._entries: deque[tuple[int, int]] = deque()  # (first step, steps) of those in the ring, oldest first
        self._online_steps = 0  # of all entries together
        self._online_end = 0  # logical index after the newest online transition, counted since the run began
        self._window = _Window(*torch.zeros(len(_Window._fields), dtype=torch.int64, device=device))

    @property
    def seed_size(self) -> int:
        """Seed transitions that are still sampled."""
        if not self._evict_seed:
            return self._seed_filled
        return max(0, min(self._seed_filled, self._capacity - self._online_end))

    @property
    def online_size(self) -> int:
        """Online transitions that are sampled."""
        return min(self._online_steps, self._capacity)

    @property
    def size(self) -> int:
        """Transitions that are sampled."""
        return self.seed_size + self.online_size

    @property
    def has_both(self) -> bool:
        """Whether both seed and online transitions are sampled."""
        return self.seed_size > 0 and self.online_size > 0

    def insert_seed(self, transitions: Transitions) -> None:
        """Append seed transitions.

        Raises:
            ValueError: more than `seed_steps` in all.
        """
        first, last = self._seed_filled, self._seed_filled + len(transitions.rewards)
        if last > self._seed_steps:
            raise ValueError(f"expected {self._seed_steps} seed transitions in all, got at least {last}")
        self._write(first, transitions)
        self._seed_filled = last
        self._move_window()

    def insert_online(self, transitions: Transitions, *, first_step: int) -> None:
        """Append one trajectory of the online stream and evict what no longer fits.

        Args:
            transitions: of one stream entry.
            first_step: the entry's position in the stream. A position behind the newest one means that Redis lost
                its last second and was filled again: those rows are replaced.
        """
        self._rewind(first_step)
        count = len(transitions.rewards)
        kept = Transitions(*(array[-self._capacity :] for array in transitions))
        self._online_end += count
        first = (self._online_end - len(kept.rewards)) % self._capacity
        before_end = min(self._capacity - first, len(kept.rewards))
        self._write(self._seed_steps + first, Transitions(*(array[:before_end] for array in kept)))
        self._write(self._seed_steps, Transitions(*(array[before_end:] for array in kept)))
        self._entries.append((first_step, count))
        self._online_steps += count
        while self._online_steps > self._capacity and len(self._entries) > 1:
            self._online_steps -= self._entries.popleft()[1]
        self._move_window()

    def _move_window(self) -> None:
        """Tell the device what is sampled now."""
        window, seed_size, online_size = self._window, self.seed_size, self.online_size
        window.size.fill_(seed_size + online_size)
        window.seed_size.fill_(seed_size)
        window.online_size.fill_(online_size)
        window.first_seed.fill_(self._seed_filled - seed_size)
        window.first_online.fill_(self._online_end - online_size)

    def _rewind(self, first_step: int) -> None:
        """Take back what lies at or behind a position; go to that position when nothing is left."""
        while self._entries and self._entries[-1][0] >= first_step:
            _, count = self._entries.pop()
            self._online_steps -= count
            self._online_end -= count
        if not self._entries:
            self._online_end = first_step

    def seed_observations(self) -> Tensor:
        """Observations of the seed transitions that have been inserted, (S, O), a view."""
        return self._transitions[: self._seed_filled, : self._columns[0]]

    def sample(self, batch_size: int, generator: torch.Generator, *, offline_fraction: float | None) -> TransitionBatch:
        """Draw a batch with replacement.

        Args:
            batch_size: B.
            generator: on the mirror's device.
            offline_fraction: share of the batch from the seed data, rounded; None draws uniformly from all. When one
                side is empty, the whole batch comes from the other.

        Raises:
            ValueError: the mirror is empty.
        """
        if self.size == 0:
            raise ValueError("expected at least one transition to sample from, the mirror is empty")
        window = self._window
        if offline_fraction is None or not self.has_both:
            logical = self._draw(window.size, batch_size, generator)
        else:
            from_seed = round(offline_fraction * batch_size)
            logical = torch.cat(
                [
                    self._draw(window.seed_size, from_seed, generator),
                    self._draw(window.online_size, batch_size - from_seed, generator) + window.seed_size,
                ]
            )
        return self.gather(self._rows(logical))

    def gather(self, rows: Tensor) -> TransitionBatch:
        """The transitions of the given rows, (B,) int64; the fields are columns of one matrix."""
        found = self._transitions.index_select(0, rows)
        observations, actions, next_observations, rewards, discounts = found.split_with_sizes(self._columns, dim=1)
        return TransitionBatch(observations, actions, rewards.squeeze(1), discounts.squeeze(1), next_observations)

    def check_valid(self) -> str | None:
        """Say which invariant is broken, or None; only tests ask."""
        steps = sum(count for _, count in self._entries)
        if steps != self._online_steps:
            return f"trajectories hold {steps} steps, expected {self._online_steps}"
        if steps > self._capacity and len(self._entries) > 1:
            return f"{len(self._entries)} trajectories of {steps} steps exceed the capacity {self._capacity}"
        if self._evict_seed and self.size > self._capacity:
            return f"size {self.size} exceeds the capacity {self._capacity} that seed and online data share"
        return None

    def _draw(self, bound: Tensor, count: int, generator: torch.Generator) -> Tensor:
        # The remainder favours small indices by less than one in 2^31, for as many as 2^31 transitions.
        return torch.randint(_FAR, (count,), generator=generator, device=self._device).remainder_(bound)

    def _rows(self, logical: Tensor) -> Tensor:
        """Logical index (oldest seed first, newest online last) -> row."""
        window = self._window
        from_online = logical - window.seed_size
        online_rows = (from_online + window.first_online).remainder_(self._capacity).add_(self._seed_steps)
        return torch.where(from_online < 0, logical + window.first_seed, online_rows)

    def _write(self, first_row: int, transitions: Transitions) -> None:
        """Write consecutive rows; on the CPU straight from the arrays, which are views of the message's bytes."""
        count = len(transitions.rewards)
        if count == 0:
            return
        target = self._transitions[first_row : first_row + count]
        on_cpu = target.device.type == "cpu"
        rows = target.numpy() if on_cpu else np.empty(target.shape, dtype=np.float32)
        parts = np.split(rows, np.cumsum(self._columns)[:-1], axis=1)
        fields = (transitions.observations, transitions.actions, transitions.next_observations)
        for part, field in zip(parts, fields, strict=False):
            part[...] = field
        parts[3][:, 0], parts[4][:, 0] = transitions.rewards, transitions.discounts
        if not on_cpu:
            target.copy_(torch.from_numpy(rows))


def _zeros(rows: int, columns: int, device: torch.device) -> Tensor:
    # The room is for the whole run: on a CPU, memory is taken as rows are written, and not all at once at the start.
    if device.type == "cpu":
        return torch.from_numpy(np.zeros((rows, columns), dtype=np.float32))
    return torch.zeros(rows, columns, device=device)
