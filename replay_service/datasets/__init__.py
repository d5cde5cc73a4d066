"""Offline datasets: what a user passes with `--dataset`, read into checked episodes. Nothing is ever unpickled freely.

Readers yield `RawEpisode`s as their format stores them; `loading` turns those into `Episode`s that fit a run.
"""

from replay_service.datasets.episode import Episode, OfflineDataset
from replay_service.datasets.inspection import DatasetFacts, inspect_dataset
from replay_service.datasets.loading import load_dataset
from replay_service.datasets.minari_directory import DatasetCard, check_minari_name, write_minari
from replay_service.datasets.npz_file import read_npz_metadata, write_npz

__all__ = [
    "DatasetCard",
    "DatasetFacts",
    "Episode",
    "OfflineDataset",
    "check_minari_name",
    "inspect_dataset",
    "load_dataset",
    "read_npz_metadata",
    "write_minari",
    "write_npz",
]
