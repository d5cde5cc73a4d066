"""From what the user names to episodes that fit the run: find the file, tell its format, check everything."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from replay_service.datasets.claims import MAX_BYTES, Claims
from replay_service.datasets.episode import AnyArray, Episode, OfflineDataset, RawEpisode
from replay_service.datasets.hdf5_file import read_hdf5
from replay_service.datasets.npz_file import read_npz
from replay_service.datasets.pickle_file import NPY_MAGIC, read_pickle
from replay_service.errors import DatasetError
from replay_service.experience import ExperienceSpec, FloatArray
from replay_service.tasks import Task, find_task

_FORMATS = (
    "a Minari directory or id, a D4RL HDF5 file, a DAPG pickle, an .npy file of paths, or an .npz of this project"
)
_MINARI_ID = re.compile(r"[\w.-]+(/[\w.-]+)*/[\w.-]+-v\d+\Z")
_ACTION_SLACK = 1.0
"""How far beyond [-1, 1] a recorded action may be, after rescaling: exploration noise is often stored unclipped, but
values of twice the range speak of another environment."""
_MINARI_FILE = Path("data") / "main_data.hdf5"


def load_dataset(
    sources: Sequence[str],
    *,
    spec: ExperienceSpec,
    action_bounds: tuple[Sequence[float], Sequence[float]] = ((), ()),
) -> OfflineDataset:
    """Load and check datasets, in order, as one.

    For the three binary tasks, rewards are recomputed from the observations, actions are clipped to [-1, 1] and no
    episode terminates; the stored rewards and terminations are not looked at. For any other environment rewards and
    terminations are taken as stored, and actions are brought from the environment's bounds to the policy's [-1, 1].

    Args:
        sources: paths or Minari ids.
        spec: of the run's environment.
        action_bounds: (low, high) of the environment's actions, A values each; empty for -1 and 1.

    Raises:
        DatasetError: a source is missing, unreadable, empty, or does not fit the environment.
    """
    task = find_task(spec.env)
    episodes: list[Episode] = []
    bytes_left = MAX_BYTES
    for source in sources:
        path = _locate(source)
        claims = Claims(source, path, spec, bytes_left=bytes_left)
        before = len(episodes)
        try:
            for index, raw in enumerate(_read(path, claims)):
                episode = _check(raw, task, claims.place(index))
                episodes.append(episode if task else _rescale(episode, action_bounds, claims.place(index)))
        except MemoryError as error:
            raise DatasetError(f"{source}: expected a dataset that fits into this machine's memory") from error
        if len(episodes) == before:
            raise DatasetError(f"{source}: expected at least one episode, got none")
        bytes_left -= claims.claimed_bytes
    return OfflineDataset(tuple(episodes), tuple(sources))


def read_stored(source: str) -> tuple[Path, Iterator[RawEpisode]]:
    """Find a dataset and read its episodes as they are stored, whatever environment they are of.

    Returns:
        The file, and its episodes; they are read as they are asked for, with the errors of `load_dataset`.

    Raises:
        DatasetError: the source is missing, cannot be opened, or has an unknown format.
    """
    path = _locate(source)
    return path, _read(path, Claims(source, path, None))


def _locate(source: str) -> Path:
    try:
        return _find(source)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory for a leading ~
        reason = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(f"{source[:200]}: cannot be looked for: {reason}; expected {_FORMATS}") from error


def _find(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        for candidate in (path / _MINARI_FILE, path / _MINARI_FILE.name):
            if candidate.is_file():
                return candidate
        raise DatasetError(f"{source}: expected a Minari dataset with {_MINARI_FILE} in it, found no such file there")
    if path.is_file():
        return path
    if path.exists():
        raise DatasetError(f"{source}: expected a file or a Minari directory, got a device, pipe or socket")
    if _MINARI_ID.match(source):
        root = Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()
        candidate = root / source / _MINARI_FILE
        if candidate.is_file():
            return candidate
        raise DatasetError(
            f"{source}: no such file, and no Minari dataset of that id in {root}: get it with "
            f"`pip install 'minari[hdf5,hf]' && minari download {source}`, or set MINARI_DATASETS_PATH"
        )
    raise DatasetError(f"{source}: no such file or directory; expected {_FORMATS}")


def _read(path: Path, claims: Claims) -> Iterator[RawEpisode]:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise DatasetError(f"{claims.source}: cannot be read: {error.strerror}") from error
    if head == b"\x89HDF\r\n\x1a\n":
        return read_hdf5(path, claims)
    if head.startswith(b"PK\x03\x04"):
        return read_npz(path, claims)
    if head.startswith((b"\x80", NPY_MAGIC, b"(", b"]")):
        return read_pickle(path, claims)
    raise DatasetError(f"{claims.source}: unknown format (it begins with {head!r}); expected {_FORMATS}")


def _check(raw: RawEpisode, task: Task | None, where: str) -> Episode:
    observations = _float32(raw.observations, "observations", where)
    actions = _float32(raw.actions, "actions", where)
    if task is not None and raw.final_is_copy:
        # The binary reward is read off the observation after the step, which is not there.
        observations, actions = observations[:-1], actions[:-1]
    steps = len(actions)
    if steps < 1:
        raise DatasetError(f"{where}: expected at least one step, got none")
    if len(observations) != steps + 1:
        raise DatasetError(f"{where}: expected {steps + 1} observations for {steps} actions, got {len(observations)}")
    if task is not None:
        bounded = np.clip(actions, -1.0, 1.0)
        return Episode(observations, bounded, task.rewards(observations[1:]), terminated=False, truncated=True)
    if raw.rewards is None:
        raise DatasetError(f"{where}: expected rewards, got none; only the three hand tasks can recompute them")
    if raw.rewards.shape != (steps,):
        raise DatasetError(f"{where}: rewards: expected shape ({steps},), got {raw.rewards.shape}")
    return Episode(observations, actions, _float32(raw.rewards, "rewards", where), raw.terminated, raw.truncated)


def _rescale(episode: Episode, bounds: tuple[Sequence[float], Sequence[float]], where: str) -> Episode:
    """Bring actions from the environment's bounds to [-1, 1]; what lies outside is kept, as in online data."""
    width = episode.actions.shape[1]
    low = np.asarray(bounds[0] or [-1.0] * width, dtype=np.float32)
    high = np.asarray(bounds[1] or [1.0] * width, dtype=np.float32)
    if (low == -1.0).all() and (high == 1.0).all():
        scaled = episode.actions  # to the last bit
    else:
        scaled = (episode.actions - low) / (high - low) * np.float32(2.0) - np.float32(1.0)
    if np.abs(scaled).max() > 1.0 + _ACTION_SLACK:
        raise DatasetError(
            f"{where}: actions: expected values from {low.min():g} to {high.max():g}, the environment's bounds, got "
            f"{episode.actions.min():g} to {episode.actions.max():g}: is it a dataset of another environment?"
        )
    return replace(episode, actions=scaled)


def _float32(array: AnyArray, name: str, where: str) -> FloatArray:
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(converted).all():
        raise DatasetError(f"{where}: {name}: expected finite values in float32, got NaN or infinity")
    return converted
