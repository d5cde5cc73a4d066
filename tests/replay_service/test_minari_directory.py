"""What we write as a Minari dataset is one, to Minari itself and to our own loader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from replay_service.datasets import DatasetCard, Episode, load_dataset, write_minari
from replay_service.errors import DatasetError
from replay_service.experience import ExperienceSpec
from tests.faults import fill, small_disk

SPEC = ExperienceSpec("synthetic", observation_dim=3, action_dim=2, max_episode_steps=20)
CARD = DatasetCard(
    observation_dim=3,
    action_dim=2,
    env_spec=gymnasium.spec("Pendulum-v1").to_json(),
    algorithm="by hand",
    description="made in a test",
    provenance={"seed": 3, "cloned_from": ["demos"]},
)


def make_episodes(lengths: tuple[int, ...] = (4, 1, 7)) -> list[Episode]:
    draw = np.random.default_rng(0)
    return [
        Episode(
            observations=draw.standard_normal((length + 1, 3), dtype=np.float32),
            actions=draw.uniform(-1, 1, (length, 2)).astype(np.float32),
            rewards=draw.standard_normal(length, dtype=np.float32),
            terminated=index == 1,
            truncated=index == 2,
        )
        for index, length in enumerate(lengths)
    ]


def test_our_loader_takes_back_what_was_written(tmp_path: Path) -> None:
    episodes = make_episodes(tuple(range(1, 13)))  # more than ten, so that the order is not the alphabet's
    assert write_minari(tmp_path / "made-v0", iter(episodes), CARD) == (12, 78)
    loaded = load_dataset([str(tmp_path / "made-v0")], spec=SPEC)
    for found, expected in zip(loaded.episodes, episodes, strict=True):
        for name in ("observations", "actions", "rewards"):
            assert np.array_equal(getattr(found, name), getattr(expected, name))
        assert (found.terminated, found.truncated) == (expected.terminated, expected.truncated)
    metadata = json.loads((tmp_path / "made-v0" / "data" / "metadata.json").read_text())
    assert json.loads(metadata["provenance"]) == {"seed": 3, "cloned_from": ["demos"]}


def test_minari_loads_it_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari", reason="needs the minari package")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    episodes = make_episodes()
    write_minari(tmp_path / "lab" / "reach" / "made-v0", episodes, CARD)
    dataset = minari.load_dataset("lab/reach/made-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 12)
    for found, expected in zip(dataset.iterate_episodes(), episodes, strict=True):
        assert np.array_equal(found.observations, expected.observations)
        assert np.array_equal(found.actions, expected.actions)
        assert np.array_equal(found.rewards, expected.rewards)
        assert bool(found.terminations[-1]) == expected.terminated
        assert bool(found.truncations[-1]) == expected.truncated
    assert dataset.action_space.shape == (2,)
    assert "lab/reach/made-v0" in minari.list_local_datasets()


@pytest.mark.parametrize("name", ["made", "made-v", "-v0", "made-v0x", "made v0-"])
def test_a_name_without_a_version_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="ends in a version"):
        write_minari(tmp_path / name, make_episodes(), CARD)


def test_a_dataset_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    write_minari(tmp_path / "made-v0", make_episodes(), CARD)
    before = (tmp_path / "made-v0" / "data" / "main_data.hdf5").read_bytes()
    with pytest.raises(DatasetError, match="exists already"):
        write_minari(tmp_path / "made-v0", make_episodes((2,)), CARD)
    assert (tmp_path / "made-v0" / "data" / "main_data.hdf5").read_bytes() == before


def test_nothing_is_left_of_a_dataset_that_was_interrupted(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Episode]:
        yield make_episodes()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_minari(tmp_path / "made-v0", interrupted(), CARD)
    with pytest.raises(DatasetError, match="at least one episode"):
        write_minari(tmp_path / "made-v0", [], CARD)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_for_a_while_costs_no_value(tmp_path: Path) -> None:
    episodes = make_episodes(tuple([200] * 60))

    def with_a_full_disk(disk: Path) -> Iterator[Episode]:
        for index, episode in enumerate(episodes):
            filler = fill(disk) if index == 22 else None
            yield episode
            if filler is not None:
                filler.unlink()

    with small_disk(tmp_path / "disk") as disk:
        assert write_minari(disk / "made-v0", with_a_full_disk(disk), CARD) == (60, 12_000)
        spec = ExperienceSpec("synthetic", observation_dim=3, action_dim=2, max_episode_steps=200)
        loaded = load_dataset([str(disk / "made-v0")], spec=spec)
        for found, expected in zip(loaded.episodes, episodes, strict=True):
            assert np.array_equal(found.actions, expected.actions)
            assert np.array_equal(found.observations, expected.observations)


def test_a_full_disk_is_told_and_nothing_is_published(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        filler = fill(disk)
        with pytest.raises(DatasetError, match=r"made-v0: cannot be written: No space left on device"):
            write_minari(disk / "made-v0", make_episodes(), CARD)
        assert list(disk.iterdir()) == [filler]
