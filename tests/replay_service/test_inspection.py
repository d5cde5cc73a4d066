"""What is counted in a dataset is what was put into it, in every format; a damaged file is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay_service.datasets import DatasetCard, Episode, inspect_dataset, write_minari
from replay_service.errors import DatasetError
from replay_service.tasks import TASKS
from tests.replay_service.test_datasets import EPISODES, WRITERS, write_own


def door_episode(hinge: list[float], reward: float) -> Episode:
    """An episode of the door task with the hinge at these angles (rad) after its steps."""
    task = TASKS["door"]
    observations = np.zeros((len(hinge) + 1, task.observation_dim), dtype=np.float32)
    observations[1:, 28] = hinge
    steps = len(hinge)
    return Episode(
        observations,
        np.zeros((steps, task.action_dim), dtype=np.float32),
        np.full(steps, reward, dtype=np.float32),
        terminated=False,
        truncated=True,
    )


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_every_format_gives_the_same_counts(form: str, tmp_path: Path) -> None:
    facts = inspect_dataset(str(WRITERS[form](tmp_path / f"made-{form}", EPISODES)))
    assert facts.lengths == (4, 1, 7)
    assert facts.dimensions == (3, 2)
    assert facts.stored_returns == pytest.approx([float(e.rewards.sum()) for e in EPISODES], rel=1e-5)
    actions = np.concatenate([e.actions for e in EPISODES])
    assert (facts.actions.lowest, facts.actions.highest) == pytest.approx((actions.min(), actions.max()))
    assert facts.actions.values == 24
    assert facts.actions_outside == 0.0
    assert facts.truncated == (0 if form == "dapg" else 3)
    assert facts.task is None
    assert facts.contradictions() == []


def test_the_task_is_guessed_and_its_rewards_are_recomputed(tmp_path: Path) -> None:
    episodes = [door_episode([0.0, 1.4, 0.2], 5.0), door_episode([1.35, 2.0], 7.0), door_episode([0.0, 0.0, 1.3], 0.5)]
    facts = inspect_dataset(str(write_own(tmp_path / "door.npz", episodes)))
    assert facts.task is not None
    assert facts.stored_returns == (15.0, 14.0, 1.5)
    assert facts.task.returns == (-2.0, 0.0, -3.0)
    assert facts.task.success_any == pytest.approx(2 / 3)
    assert facts.task.success_final == pytest.approx(1 / 3)
    assert facts.task.success_fraction == pytest.approx(3 / 8)
    assert facts.metadata == {"made": "by a test"}


def test_actions_beyond_the_bounds_and_nan_are_counted(tmp_path: Path) -> None:
    actions = np.array([[0.5, -1.5], [1.0, -1.0], [2.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    observations = EPISODES[0].observations.copy()
    observations[2, 1], observations[3, 0] = np.nan, np.inf
    rewards = np.array([1, np.nan, 1, 1], dtype=np.float32)
    episode = replace(EPISODES[0], actions=actions, observations=observations, rewards=rewards)
    path = str(write_own(tmp_path / "a.npz", [episode]))
    facts = inspect_dataset(path)
    assert facts.actions_outside == 2 / 8
    assert inspect_dataset(path, bounds=((-2.0, -2.0), (1.5, 2.0))).actions_outside == 1 / 8
    assert (facts.observations.not_finite, facts.rewards.not_finite) == (2, 1)
    assert np.isfinite([facts.observations.lowest, facts.observations.highest]).all()
    assert facts.contradictions() == [
        "observations: 2 of 15 values are NaN or infinite",
        "rewards: 1 of 4 values are NaN or infinite",
    ]


def test_what_minari_says_is_shown_and_compared(tmp_path: Path) -> None:
    card = DatasetCard(
        observation_dim=3, action_dim=2, env_spec="{}", algorithm="by hand", description="red \x1b[31m text",
        provenance={"seed": 3},
    )  # fmt: skip
    write_minari(tmp_path / "made-v0", EPISODES, card)
    facts = inspect_dataset(str(tmp_path / "made-v0"))
    assert facts.form == "Minari"
    assert facts.metadata["description"] == "red  [31m text"
    assert facts.metadata["provenance"] == '{"seed": 3}'
    assert facts.contradictions() == []
    said = tmp_path / "made-v0" / "data" / "metadata.json"
    said.write_text(json.dumps({**json.loads(said.read_text()), "total_steps": 13}))
    facts = inspect_dataset(str(tmp_path / "made-v0"))
    assert facts.contradictions() == ["the metadata say total_steps 13, the file holds 12"]
    said.write_text("{")
    with pytest.raises(DatasetError, match=r"metadata.json: expected a JSON object"):
        inspect_dataset(str(tmp_path / "made-v0"))


def test_d4rl_metadata_are_shown(tmp_path: Path) -> None:
    path = WRITERS["d4rl"](tmp_path / "a.hdf5", EPISODES)
    with h5py.File(path, "a") as file:
        file["metadata/algorithm"] = "SAC"
        file["metadata/policy/weight"] = np.zeros((3, 3))
    facts = inspect_dataset(str(path))
    assert (facts.form, facts.metadata) == ("D4RL HDF5", {"algorithm": "SAC"})


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_a_file_cut_in_half_is_refused_by_name(form: str, tmp_path: Path) -> None:
    path = WRITERS[form](tmp_path / f"made-{form}", EPISODES)
    file = path / "data" / "main_data.hdf5" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DatasetError, match=f"made-{form}"):
        inspect_dataset(str(path))


def test_arrays_that_disagree_are_refused_with_their_episode(tmp_path: Path) -> None:
    path = WRITERS["minari"](tmp_path / "made", EPISODES)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = np.zeros(5)
    with pytest.raises(DatasetError, match=r"episode 1: rewards: expected 1 rows, got shape \(5,\)"):
        inspect_dataset(str(path))
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = np.float32(1.0)
    with pytest.raises(DatasetError, match="episode 0: actions: expected a row a step, got a single number"):
        inspect_dataset(str(path))


@pytest.mark.parametrize("form", sorted(WRITERS))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_flipped_bytes_give_the_declared_error_or_facts(form: str, seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    path = WRITERS[form](tmp_path / f"{seed}-{form}", EPISODES)
    try:
        file = path / "data" / "main_data.hdf5" if path.is_dir() else path
        content = bytearray(file.read_bytes())
        for place in draw.integers(len(content), size=4):
            content[place] ^= int(draw.integers(1, 256))
        file.write_bytes(bytes(content))
        with contextlib.suppress(DatasetError):
            facts = inspect_dataset(str(path))
            assert len(facts.lengths) >= 1
            facts.contradictions()
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
