"""From what the user names to episodes that fit the run: find the file, tell its format, check everything."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

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
_MINARI_FILE = Path("data") / "main_data.hdf5"


def load_dataset(sources: Sequence[str], *, spec: ExperienceSpec) -> OfflineDataset:
    """Load and check datasets, in order, as one.

    For the three binary tasks, rewards are recomputed from the observations, actions are clipped to [-1, 1] and no
    episode terminates; the stored rewards and terminations are not looked at. For any other environment everything is
    taken as stored; actions are expected in the policy's range, [-1, 1].

    Args:
        sources: paths or Minari ids.
        spec: of the run's environment.

    Raises:
        DatasetError: a source is missing, unreadable, empty, or does not fit the environment.
    """
    task = find_task(spec.env)
    episodes: list[Episode] = []
    for source in sources:
        before = len(episodes)
        for index, raw in enumerate(_read(_locate(source), source)):
            episodes.append(_check(raw, spec, task, f"{source}, episode {index}"))
        if len(episodes) == before:
            raise DatasetError(f"{source}: expected at least one episode, got none")
    return OfflineDataset(tuple(episodes), tuple(sources))


def _locate(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        for candidate in (path / _MINARI_FILE, path / _MINARI_FILE.name):
            if candidate.is_file():
                return candidate
        raise DatasetError(f"{source}: expected a Minari dataset with {_MINARI_FILE} in it, found no such file there")
    if path.exists():
        return path
    if _MINARI_ID.match(source):
        root = Path(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")).expanduser()
        candidate = root / source / _MINARI_FILE
        if candidate.is_file():
            return candidate
        raise DatasetError(
            f"{source}: no such file, and no Minari dataset of that id in {root}: get it with "
            f"`pip install 'minari[hdf5,hf]' && minari download {source}`, or set MINARI_DATASETS_PATH"
        )
    raise DatasetError(f"{source}: no such file or directory; expected {_FORMATS}")


def _read(path: Path, source: str) -> Iterator[RawEpisode]:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise DatasetError(f"{source}: cannot be read: {error.strerror}") from error
    if head == b"\x89HDF\r\n\x1a\n":
        return read_hdf5(path)
    if head.startswith(b"PK\x03\x04"):
        return read_npz(path)
    if head.startswith((b"\x80", NPY_MAGIC, b"(", b"]")):
        return read_pickle(path)
    raise DatasetError(f"{source}: unknown format (it begins with {head!r}); expected {_FORMATS}")


def _check(raw: RawEpisode, spec: ExperienceSpec, task: Task | None, where: str) -> Episode:
    observations = _float32(raw.observations, "observations", spec.observation_dim, spec.env, where)
    actions = _float32(raw.actions, "actions", spec.action_dim, spec.env, where)
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
    rewards = np.asarray(raw.rewards, dtype=np.float32)
    if rewards.shape != (steps,):
        raise DatasetError(f"{where}: rewards: expected shape ({steps},), got {rewards.shape}")
    if not np.isfinite(rewards).all():
        raise DatasetError(f"{where}: rewards: expected finite values, got NaN or infinity")
    return Episode(observations, actions, rewards, raw.terminated, raw.truncated)


def _float32(array: AnyArray, name: str, width: int, env: str, where: str) -> FloatArray:
    if array.ndim != 2 or array.shape[1] != width:
        raise DatasetError(
            f"{where}: {name}: environment {env} has {width} values a step, got an array of shape {array.shape}: "
            "is it a dataset of another environment?"
        )
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{where}: {name}: expected numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(converted).all():
        raise DatasetError(f"{where}: {name}: expected finite values in float32, got NaN or infinity")
    return converted
