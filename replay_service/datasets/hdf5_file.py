"""Minari and D4RL datasets: both are HDF5, told apart by their groups.

Minari: a group `episode_<i>` an episode, observations with the final one included. D4RL: flat arrays, cut at `timeouts`
or `terminals`; the final observation of an episode is not stored, so its last step is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from replay_service.datasets.episode import AnyArray, RawEpisode
from replay_service.errors import DatasetError

MAX_BYTES = 16 * 2**30
"""Largest array that is read from a file."""

_EPISODE_GROUP = re.compile(r"episode_(\d+)\Z")
_D4RL_ARRAYS = ("observations", "actions", "rewards")


def read_hdf5(path: Path) -> Iterator[RawEpisode]:
    """Yield the episodes of a Minari or D4RL file.

    Raises:
        DatasetError: the file is damaged, or has neither layout.
    """
    try:
        with h5py.File(path, "r") as file:
            groups = sorted((int(found[1]), name) for name in file if (found := _EPISODE_GROUP.match(name)))
            if groups:
                for _index, name in groups:
                    yield _minari_episode(file[name], f"{path}: {name}")
            elif all(name in file for name in _D4RL_ARRAYS):
                yield from _d4rl_episodes(file, str(path))
            else:
                raise DatasetError(
                    f"{path}: expected Minari's groups episode_0, episode_1, ... or D4RL's arrays "
                    f"{', '.join(_D4RL_ARRAYS)}, got {', '.join(sorted(file)[:8]) or 'an empty file'}"
                )
    except (OSError, RuntimeError, KeyError) as error:
        raise DatasetError(f"{path} is damaged or not HDF5: {error}") from error


def _minari_episode(group: h5py.Group, where: str) -> RawEpisode:
    observations, actions = _read(group, "observations", where), _read(group, "actions", where)
    rewards = _read(group, "rewards", where)
    terminations, truncations = _read(group, "terminations", where), _read(group, "truncations", where)
    ends = bool(terminations[-1]) if len(terminations) else False
    return RawEpisode(observations, actions, rewards, ends, bool(truncations[-1]) if len(truncations) else False)


def _d4rl_episodes(file: h5py.File, where: str) -> Iterator[RawEpisode]:
    observations, actions, rewards = (_read(file, name, where) for name in _D4RL_ARRAYS)
    count = len(observations)
    terminals = _read(file, "terminals", where) if "terminals" in file else np.zeros(count, dtype=bool)
    timeouts = _read(file, "timeouts", where) if "timeouts" in file else np.zeros(count, dtype=bool)
    lengths = {"actions": len(actions), "rewards": len(rewards), "terminals": len(terminals), "timeouts": len(timeouts)}
    wrong = {name: length for name, length in lengths.items() if length != count}
    if wrong:
        raise DatasetError(f"{where}: expected {count} rows in every array as in observations, got {wrong}")
    ends = np.flatnonzero(terminals.astype(bool) | timeouts.astype(bool))
    first = 0
    for last in [*ends.tolist(), count - 1]:
        # A row without its successor has no final observation: it only serves as the last observation itself.
        if last > first:
            yield RawEpisode(
                observations[first : last + 1], actions[first:last], rewards[first:last], False, bool(timeouts[last])
            )
        first = last + 1


def _read(group: h5py.Group, name: str, where: str) -> AnyArray:
    item = group.get(name)
    if not isinstance(item, h5py.Dataset):
        found = "a group" if isinstance(item, h5py.Group) else "nothing"
        raise DatasetError(
            f"{where}: expected an array {name!r}, got {found} (dictionary observations are not supported)"
        )
    if item.dtype.kind not in "fiub":
        raise DatasetError(f"{where}: {name}: expected numbers, got {item.dtype}")
    if item.nbytes > MAX_BYTES:
        raise DatasetError(f"{where}: {name} claims {item.nbytes} bytes, the limit is {MAX_BYTES}")
    return np.asarray(item)
