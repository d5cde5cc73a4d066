"""Minari and D4RL datasets: both are HDF5, told apart by their groups.

Minari: a group `episode_<i>` an episode, observations with the final one included. D4RL: flat arrays, cut at `timeouts`
or `terminals`; the final observation of an episode is not stored. Its last step is dropped, unless it reached a
terminal state: nobody bootstraps from there, so a copy of the observation before stands in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from replay_service.datasets.claims import Claims
from replay_service.datasets.episode import AnyArray, RawEpisode
from replay_service.errors import DatasetError

BoolArray = npt.NDArray[np.bool_]

_EPISODE_GROUP = re.compile(r"episode_(\d+)\Z")
_D4RL_ARRAYS = ("observations", "actions", "rewards")


def read_hdf5(path: Path, claims: Claims) -> Iterator[RawEpisode]:
    """Yield the episodes of a Minari or D4RL file.

    Raises:
        DatasetError: the file is damaged, has neither layout, or its arrays do not fit the environment or each other.
    """
    try:
        with h5py.File(path, "r") as file:
            names = [name for name in file if isinstance(name, str)]  # a damaged name comes as bytes
            groups = sorted((int(found[1]), name) for name in names if (found := _EPISODE_GROUP.match(name)))
            if groups:
                for index, (_number, name) in enumerate(groups):
                    yield _minari_episode(file[name], claims, index)
            elif all(name in names for name in _D4RL_ARRAYS):
                yield from _d4rl_episodes(file, claims)
            else:
                raise DatasetError(
                    f"{claims.source}: expected Minari's groups episode_0, episode_1, ... or D4RL's arrays "
                    f"{', '.join(_D4RL_ARRAYS)}, got {', '.join(sorted(names)[:8]) or 'an empty file'}"
                )
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # h5py raises a dozen types for damaged bytes
        raise DatasetError(f"{claims.source}: {path.name} is damaged or not HDF5: {error}") from error


def _minari_episode(group: h5py.Group, claims: Claims, index: int) -> RawEpisode:
    if not isinstance(group, h5py.Group):
        raise DatasetError(f"{claims.place(index)}: expected a group, got an array")
    observations = _read(group, "observations", claims, index)
    actions = _read(group, "actions", claims, index)
    rewards = _read(group, "rewards", claims, index)
    steps = len(actions)
    terminations = _read_flags(group, "terminations", steps, claims, index)
    truncations = _read_flags(group, "truncations", steps, claims, index)
    return RawEpisode(observations, actions, rewards, bool(terminations[-1:].any()), bool(truncations[-1:].any()))


def _d4rl_episodes(file: h5py.File, claims: Claims) -> Iterator[RawEpisode]:
    observations, actions, rewards = (_read(file, name, claims) for name in _D4RL_ARRAYS)
    count = len(observations)
    for name, array in (("actions", actions), ("rewards", rewards)):
        if array.shape[:1] != (count,):
            raise DatasetError(
                f"{claims.source}: {name}: expected {count} rows as in observations, got shape {array.shape}"
            )
    terminals, timeouts = (
        _read_flags(file, name, count, claims) if name in file else np.zeros(count, dtype=np.bool_)
        for name in ("terminals", "timeouts")
    )
    first = 0
    for last in [*np.flatnonzero(terminals | timeouts).tolist(), count - 1]:
        if terminals[last] and first <= last:
            kept = slice(first, last + 1)
            repeated = np.concatenate([observations[kept], observations[last : last + 1]])
            yield RawEpisode(repeated, actions[kept], rewards[kept], True, False, final_is_copy=True)
        elif last > first:
            # A row without its successor only serves as the last observation itself.
            kept = slice(first, last)
            cut = bool(timeouts[last])
            yield RawEpisode(observations[first : last + 1], actions[kept], rewards[kept], False, cut)
        first = last + 1


def _read(group: h5py.Group, name: str, claims: Claims, episode: int | None = None) -> AnyArray:
    item = group.get(name)
    if not isinstance(item, h5py.Dataset):
        found = "a group (dictionary observations are not supported)" if isinstance(item, h5py.Group) else "nothing"
        raise DatasetError(f"{claims.place(episode)}: expected an array {name!r}, got {found}")
    claims.admit(name, item.shape or (), item.dtype, episode=episode)
    return np.asarray(item)


def _read_flags(group: h5py.Group, name: str, count: int, claims: Claims, episode: int | None = None) -> BoolArray:
    flags = _read(group, name, claims, episode)
    if flags.shape != (count,):
        raise DatasetError(f"{claims.place(episode)}: {name}: expected shape ({count},), got {flags.shape}")
    return flags.astype(np.bool_)
