"""Offline datasets: every format reads as the same episodes; a bad file gives nothing but the declared error."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.datasets import Episode, OfflineDataset, load_dataset, read_npz_metadata, write_npz
from replay_service.demonstrations import shipped_path
from replay_service.errors import DatasetError
from replay_service.experience import ExperienceSpec
from replay_service.tasks import TASKS

SPEC = ExperienceSpec("Custom-v0", 3, 2, 50)
ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("AWAC_TEST_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public datasets are not here (set AWAC_TEST_DATA)")


def task_spec(name: str) -> ExperienceSpec:
    task = TASKS[name]
    return ExperienceSpec(name, task.observation_dim, task.action_dim, task.max_episode_steps)


def make_episode(steps: int, seed: int = 0, *, terminated: bool = False, truncated: bool = True) -> Episode:
    draw = np.random.default_rng(seed)
    return Episode(
        observations=draw.standard_normal((steps + 1, 3), dtype=np.float32),
        actions=draw.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rewards=draw.standard_normal(steps, dtype=np.float32),
        terminated=terminated,
        truncated=truncated,
    )


EPISODES = [make_episode(4, 1), make_episode(1, 2), make_episode(7, 3)]


def write_minari(path: Path, episodes: list[Episode]) -> Path:
    (path / "data").mkdir(parents=True)
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for index, episode in enumerate(episodes):
            group = file.create_group(f"episode_{index}")
            group["observations"] = episode.observations.astype(np.float64)
            group["actions"] = episode.actions
            group["rewards"] = episode.rewards.astype(np.float64)
            ends = np.zeros(len(episode.rewards), dtype=bool)
            ends[-1] = True
            group["terminations"] = ends & episode.terminated
            group["truncations"] = ends & episode.truncated
    return path


def flat_rows(episode: Episode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As D4RL and DAPG store it: the last observation has an action and a reward of its own that lead nowhere."""
    actions = np.concatenate([episode.actions, np.zeros((1, 2), dtype=np.float32)])
    return episode.observations, actions, np.concatenate([episode.rewards, np.array([9.0], dtype=np.float32)])


def write_d4rl(path: Path, episodes: list[Episode]) -> Path:
    rows = [flat_rows(episode) for episode in episodes]
    timeouts = np.concatenate([np.arange(len(o)) == len(o) - 1 for o, _a, _r in rows])
    with h5py.File(path, "w") as file:
        file["observations"] = np.concatenate([o for o, _a, _r in rows])
        file["actions"] = np.concatenate([a for _o, a, _r in rows])
        file["rewards"] = np.concatenate([r for _o, _a, r in rows])
        file["terminals"] = np.zeros(len(timeouts), dtype=bool)
        file["timeouts"] = timeouts
    return path


def write_dapg(path: Path, episodes: list[Episode]) -> Path:
    rows = [flat_rows(episode) for episode in episodes]
    paths = [{"observations": o.astype(np.float64), "actions": a, "rewards": r} for o, a, r in rows]
    path.write_bytes(pickle.dumps(paths, protocol=2))
    return path


def write_own(path: Path, episodes: list[Episode]) -> Path:
    write_npz(path, episodes, {"made": "by a test"})
    return path


WRITERS: dict[str, Callable[[Path, list[Episode]], Path]] = {
    "minari": write_minari,
    "d4rl": write_d4rl,
    "dapg": write_dapg,
    "npz": write_own,
}


def assert_same(found: Episode, expected: Episode) -> None:
    for name in ("observations", "actions", "rewards"):
        array = getattr(found, name)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_every_format_reads_as_what_was_written(form: str, tmp_path: Path) -> None:
    dataset = load_dataset([str(WRITERS[form](tmp_path / "data-file", EPISODES))], spec=SPEC)
    assert dataset.num_episodes == 3
    assert dataset.num_steps == 12
    for found, expected in zip(dataset.episodes, EPISODES, strict=True):
        assert_same(found, expected)


def test_the_fingerprint_is_of_the_contents_not_of_the_file(tmp_path: Path) -> None:
    fingerprints = {
        load_dataset([str(write(tmp_path / name, EPISODES))], spec=SPEC).fingerprint
        for name, write in WRITERS.items()
        if name != "dapg"  # which stores no time limit
    }
    assert len(fingerprints) == 1
    other = load_dataset([str(write_own(tmp_path / "other", EPISODES[:2]))], spec=SPEC)
    assert other.fingerprint not in fingerprints


def test_several_sources_are_one_dataset_in_order(tmp_path: Path) -> None:
    first, second = write_own(tmp_path / "a", EPISODES[:1]), write_d4rl(tmp_path / "b", EPISODES[1:])
    dataset = load_dataset([str(second), str(first)], spec=SPEC)
    assert [len(e.rewards) for e in dataset.episodes] == [1, 7, 4]


def test_a_minari_id_is_found_below_the_datasets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_minari(tmp_path / "lab" / "reach" / "demo-v0", EPISODES)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert load_dataset(["lab/reach/demo-v0"], spec=SPEC).num_episodes == 3
    with pytest.raises(DatasetError, match=r"minari download lab/reach/other-v0"):
        load_dataset(["lab/reach/other-v0"], spec=SPEC)


def test_d4rl_terminal_steps_are_kept_and_a_tail_without_an_end_too(tmp_path: Path) -> None:
    recorded = make_episode(9)
    path = write_d4rl(tmp_path / "x", [recorded])
    with h5py.File(path, "a") as file:
        file["timeouts"][...] = False
        file["terminals"][3] = True
    first, tail = load_dataset([str(path)], spec=SPEC).episodes
    assert (first.terminated, tail.terminated) == (True, False)
    np.testing.assert_array_equal(first.rewards, recorded.rewards[:4])
    np.testing.assert_array_equal(first.observations[3], first.observations[4])
    assert len(tail.rewards) == 5


def test_the_binary_tasks_drop_a_terminal_step_whose_outcome_was_not_stored(tmp_path: Path) -> None:
    observations = np.zeros((4, 39), dtype=np.float32)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["observations"], file["actions"] = observations, np.zeros((4, 28), dtype=np.float32)
        file["rewards"], file["terminals"] = np.zeros(4), np.array([False, False, False, True])
    (episode,) = load_dataset([str(tmp_path / "x.hdf5")], spec=task_spec("door")).episodes
    assert len(episode.rewards) == 3
    assert not episode.terminated


def test_an_npz_is_written_to_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "x.npz"
    link.symlink_to("elsewhere/x.npz")
    write_npz(link, EPISODES, {})
    assert link.is_symlink()
    assert len(load_dataset([str(tmp_path / "elsewhere" / "x.npz")], spec=SPEC).episodes) == len(EPISODES)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_npz_round_trip(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    flags = data.draw(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=len(lengths), max_size=len(lengths)))
    episodes = [
        make_episode(steps, index, terminated=ends, truncated=cut)
        for index, (steps, (ends, cut)) in enumerate(zip(lengths, flags, strict=True))
    ]
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    write_npz(path, episodes, {"key": "value"})
    loaded = load_dataset([str(path)], spec=SPEC)
    for found, expected in zip(loaded.episodes, episodes, strict=True):
        assert_same(found, expected)
        assert (found.terminated, found.truncated) == (expected.terminated, expected.truncated)
    assert loaded.fingerprint == OfflineDataset(tuple(episodes), ()).fingerprint
    assert read_npz_metadata(path) == {"key": "value"}
    first = path.read_bytes()
    write_npz(path, episodes, {"key": "value"})
    assert path.read_bytes() == first


def test_binary_tasks_recompute_rewards_clip_actions_and_never_terminate(tmp_path: Path) -> None:
    observations = np.zeros((4, 39), dtype=np.float32)
    observations[2:, 28] = 1.4  # the door's hinge, radians
    actions = np.full((3, 28), 1.37, dtype=np.float32)
    episode = Episode(observations, actions, np.array([7, 7, 7], dtype=np.float32), terminated=True, truncated=False)
    write_npz(tmp_path / "x.npz", [episode], {})
    (loaded,) = load_dataset([str(tmp_path / "x.npz")], spec=task_spec("door")).episodes
    assert loaded.rewards.tolist() == [-1.0, 0.0, 0.0]
    assert loaded.actions.max() == 1.0
    assert not loaded.terminated
    assert loaded.truncated


def test_actions_are_brought_from_the_environments_bounds_to_the_policys(tmp_path: Path) -> None:
    recorded = make_episode(4)
    low, high = (-2.0, 0.0), (2.0, 10.0)
    stored = np.array(low) + (recorded.actions + 1) / 2 * (np.array(high) - np.array(low))
    write_own(tmp_path / "x", [spoil(recorded, actions=stored.astype(np.float32))])
    (episode,) = load_dataset([str(tmp_path / "x")], spec=SPEC, action_bounds=(low, high)).episodes
    np.testing.assert_allclose(episode.actions, recorded.actions, atol=1e-6)
    with pytest.raises(DatasetError, match="expected values from -1 to 1, the environment's bounds"):
        load_dataset([str(tmp_path / "x")], spec=SPEC)


class Malice:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_a_program_runs_nothing(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "evil.pickle"
    path.write_bytes(pickle.dumps([{"observations": Malice(marker)}], protocol=protocol))
    with pytest.raises(DatasetError, match=r"refused to load|unknown format"):
        load_dataset([str(path)], spec=SPEC)
    assert not marker.exists()


def test_an_object_npy_goes_through_the_same_reader(tmp_path: Path) -> None:
    rows = [flat_rows(episode) for episode in EPISODES]
    paths = np.empty(len(rows), dtype=object)
    for index, (o, a, r) in enumerate(rows):
        paths[index] = {"observations": [{"state_observation": row} for row in o], "actions": a, "rewards": r}
    np.save(tmp_path / "paths.npy", paths, allow_pickle=True)
    dataset = load_dataset([str(tmp_path / "paths.npy")], spec=SPEC)
    for found, expected in zip(dataset.episodes, EPISODES, strict=True):
        assert_same(found, expected)
    marker = tmp_path / "ran"
    evil = np.empty(1, dtype=object)
    evil[0] = Malice(marker)
    np.save(tmp_path / "evil.npy", evil, allow_pickle=True)
    with pytest.raises(DatasetError, match="refused to load"):
        load_dataset([str(tmp_path / "evil.npy")], spec=SPEC)
    assert not marker.exists()


def huge_npy(path: Path) -> None:
    """A .npz whose observations claim an exabyte in their header."""
    import zipfile

    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000000000, 3), }"
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    write_npz(path, EPISODES, {})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["observations.npy"] = body
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_claimed_size_allocates_nothing(tmp_path: Path) -> None:
    huge_npy(tmp_path / "x.npz")
    with pytest.raises(DatasetError):
        load_dataset([str(tmp_path / "x.npz")], spec=SPEC)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for name, width in (("observations", 3), ("actions", 2)):
            file.create_dataset(name, shape=(10**14, width), dtype=np.float32, chunks=(1024, width))
        file.create_dataset("rewards", shape=(10**14,), dtype=np.float32, chunks=(1024,))
    with pytest.raises(DatasetError, match="claims"):
        load_dataset([str(tmp_path / "x.hdf5")], spec=SPEC)


def spoil(episode: Episode, **changes: np.ndarray) -> Episode:
    values = {name: getattr(episode, name).copy() for name in ("observations", "actions", "rewards")}
    return Episode(**{**values, **changes}, terminated=False, truncated=True)


MISFITS: dict[str, tuple[Episode, str]] = {
    "wide observations": (
        spoil(EPISODES[0], observations=np.zeros((5, 4), dtype=np.float32)),
        r"observations: environment Custom-v0 has 3 values a step, got an array of shape \(5, 4\)",
    ),
    "narrow actions": (spoil(EPISODES[0], actions=np.zeros((4, 1), dtype=np.float32)), r"actions: environment"),
    "NaN": (spoil(EPISODES[0], actions=np.full((4, 2), np.nan, dtype=np.float32)), r"actions: expected finite"),
    "infinite reward": (
        spoil(EPISODES[0], rewards=np.full(4, np.inf, dtype=np.float32)),
        r"rewards: expected finite",
    ),
    "lost observation": (
        spoil(EPISODES[0], observations=np.zeros((4, 3), dtype=np.float32)),
        r"expected 5 observations for 4 actions, got 4",
    ),
}


@pytest.mark.parametrize("misfit", sorted(MISFITS))
def test_an_episode_that_does_not_fit_is_named_with_both_sides(misfit: str, tmp_path: Path) -> None:
    episode, expected = MISFITS[misfit]
    path = write_minari(tmp_path / "x", [EPISODES[0], episode])
    with pytest.raises(DatasetError, match=rf"x, episode 1: .*{expected}"):
        load_dataset([str(path)], spec=SPEC)


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    path = write_minari(tmp_path / "x", EPISODES)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/observations"][0, 0] = 1e300
    with pytest.raises(DatasetError, match="finite values in float32"):
        load_dataset([str(path)], spec=SPEC)


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_a_file_cut_anywhere_gives_the_declared_error_or_whole_episodes(form: str, tmp_path: Path) -> None:
    written = WRITERS[form](tmp_path / "x", EPISODES)
    file = written / "data" / "main_data.hdf5" if written.is_dir() else written
    whole = file.read_bytes()
    for cut in range(0, len(whole), max(1, len(whole) // 60)):
        file.write_bytes(whole[:cut])
        with pytest.raises(DatasetError):
            load_dataset([str(written)], spec=SPEC)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bytes_give_the_declared_error_or_finite_data(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    form = data.draw(st.sampled_from(sorted(WRITERS)))
    written = WRITERS[form](tmp_path_factory.mktemp("flip") / "x", EPISODES)
    file = written / "data" / "main_data.hdf5" if written.is_dir() else written
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content))
    try:
        dataset = load_dataset([str(written)], spec=SPEC)
    except DatasetError:
        return
    for episode in dataset.episodes:
        for array in (episode.observations, episode.actions, episode.rewards):
            assert np.isfinite(array).all()


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=300), head=st.sampled_from([b"", b"\x80\x02", b"\x93NUMPY", b"PK\x03\x04", b"(", b"]"])
)
def test_arbitrary_bytes_give_the_declared_error(
    content: bytes, head: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x"
    path.write_bytes(head + content)
    with pytest.raises(DatasetError):
        load_dataset([str(path)], spec=SPEC)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "no such file or directory"),
        (lambda path: path.mkdir(), "expected a Minari dataset"),
        (lambda path: path.write_text("a,b\n1,2\n"), "unknown format"),
        (lambda path: path.write_bytes(b""), "unknown format"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "expected a list of dictionaries"),
        (lambda path: path.write_bytes(pickle.dumps([])), "at least one episode"),
        (lambda path: h5py.File(path, "w").close(), "expected Minari's groups"),
    ],
    ids=["missing", "empty folder", "csv", "empty file", "not a list", "empty list", "empty hdf5"],
)
def test_a_source_that_is_none_says_what_was_expected(
    make: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    make(tmp_path / "x")
    with pytest.raises(DatasetError, match=expected):
        load_dataset([str(tmp_path / "x")], spec=SPEC)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_shipped_demonstrations_are_25_successful_episodes_with_their_provenance(task: str) -> None:
    path = shipped_path(task)
    assert path is not None
    dataset = load_dataset([str(path)], spec=task_spec(task))
    assert [len(e.rewards) for e in dataset.episodes] == [200] * 25
    assert all(episode.rewards[-1] == 0.0 for episode in dataset.episodes)
    metadata = read_npz_metadata(path)
    assert metadata["env"] == task
    assert {"policy", "cloned_from", "noise_std", "noise_correlation", "seed"} <= set(metadata)


@needs_data
def test_the_human_door_demonstrations_are_the_same_in_minari_and_in_the_original_form() -> None:
    minari = load_dataset([str(DATA / "minari/adroit/door/human-v0")], spec=task_spec("door"))
    original = load_dataset([str(DATA / "dapg/door-v0_demos.pickle")], spec=task_spec("door"))
    assert minari.num_episodes == original.num_episodes == 25
    assert minari.num_steps == original.num_steps == 6729 - 25
    assert minari.fingerprint == original.fingerprint
    assert minari.success_rate == 7 / 25  # by the authors' 1.35 rad; the humans stopped at 1.06 to 1.59


@needs_data
@pytest.mark.parametrize("task", ["pen", "relocate"])
def test_the_demonstrations_of_the_curves_are_the_same_in_minari_and_as_they_are_kept(task: str) -> None:
    minari = load_dataset([str(DATA / f"minari/adroit/{task}/demos-v0")], spec=task_spec(task))
    kept = ROOT / "benchmarks" / "demonstrations" / f"{task}-demos-v0.npz"
    assert load_dataset([str(kept)], spec=task_spec(task)).fingerprint == minari.fingerprint


@needs_data
@pytest.mark.parametrize("name", ["pen/demos-v0", "relocate/demos-v0", "pen/expert-v0", "door/expert-v0"])
def test_public_datasets_are_successful_and_agree_with_what_they_recorded(name: str) -> None:
    folder = DATA / "minari/adroit" / name
    task = name.partition("/")[0]
    dataset = load_dataset([str(folder)], spec=task_spec(task))
    assert dataset.success_rate == 1.0
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        for index, episode in enumerate(dataset.episodes[:10]):
            recorded = np.asarray(file[f"episode_{index}/infos/success"])[1:]
            np.testing.assert_array_equal(episode.rewards == 0.0, recorded)
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    assert metadata["total_episodes"] == dataset.num_episodes


@needs_data
def test_a_dataset_of_another_task_is_refused_with_both_shapes() -> None:
    with pytest.raises(DatasetError, match=r"environment door has 39 values a step, got an array of shape \(201, 45\)"):
        load_dataset([str(DATA / "minari/adroit/pen/demos-v0")], spec=task_spec("door"))
