"""Sources that cannot be found, and files whose arrays do not fit each other: each a message that names the place."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from replay_service.datasets import Episode, load_dataset, read_npz_metadata, write_npz
from replay_service.errors import DatasetError
from replay_service.experience import ExperienceSpec

SPEC = ExperienceSpec("Custom-v0", 3, 2, 50)
DOOR = ExperienceSpec("door", 39, 28, 200)
STEPS = 4
GOOD: dict[str, Any] = {
    "observations": np.zeros((STEPS + 1, 3)),
    "actions": np.zeros((STEPS, 2)),
    "rewards": np.zeros(STEPS),
}
MINARI_ENDS = {"terminations": np.zeros(STEPS, bool), "truncations": np.arange(STEPS) == STEPS - 1}
NPZ_ENDS = {"episode_lengths": np.array([STEPS]), "terminated": np.array([False]), "truncated": np.array([True])}


def write_minari(path: Path, arrays: dict[str, Any]) -> str:
    with h5py.File(path, "w") as file:
        group = file.create_group("episode_0")
        for name, array in arrays.items():
            group[name] = array
    return str(path)


def refused(source: str, expected: str, spec: ExperienceSpec = SPEC) -> None:
    with pytest.raises(DatasetError, match=expected):
        load_dataset([source], spec=spec)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("~no-such-user-here/x", "cannot be looked for"), ("x" * 5_000, "cannot be looked for: File name too long")],
    ids=["unknown user", "long name"],
)
def test_a_path_that_the_system_refuses_is_the_user_s_error(source: str, expected: str) -> None:
    refused(source, expected)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(str(tmp_path / "pipe"), "got a device, pipe or socket")


def test_an_id_that_is_missing_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    refused("lab/reach/demo-v0", rf"no Minari dataset of that id in {re.escape(str(tmp_path))}: .*minari download lab")
    refused("lab/reach/demo.hdf5", "no such file or directory; expected a Minari directory or id")


@pytest.mark.parametrize("form", ["folder", "data folder", "file"])
def test_a_minari_dataset_may_be_named_by_its_folder_or_its_file(form: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = write_minari(tmp_path / "data" / "main_data.hdf5", GOOD | MINARI_ENDS)
    source = {"folder": str(tmp_path), "data folder": str(tmp_path / "data"), "file": file}[form]
    (episode,) = load_dataset([source], spec=SPEC).episodes
    assert (episode.terminated, episode.truncated) == (False, True)


WRONG_MINARI: dict[str, tuple[dict[str, Any], str]] = {
    "scalar terminations": ({"terminations": np.bool_(True)}, r"terminations: expected shape \(4,\), got \(\)"),
    "wide terminations": (
        {"terminations": np.zeros((4, 2), bool)},
        r"terminations: expected shape \(4,\), got \(4, 2\)",
    ),
    "short truncations": ({"truncations": np.ones(2, bool)}, r"truncations: expected shape \(4,\), got \(2,\)"),
    "complex actions": ({"actions": np.zeros((4, 2), complex)}, r"actions: expected numbers, got complex128"),
    "flat observations": ({"observations": np.zeros(15)}, r"observations: environment .* shape \(15,\)"),
    "short rewards": ({"rewards": np.zeros(3)}, r"rewards: expected shape \(4,\), got \(3,\)"),
    "rewards beyond float32": ({"rewards": np.full(4, 1e300)}, r"rewards: expected finite values"),
}


@pytest.mark.parametrize("wrong", sorted(WRONG_MINARI))
def test_a_minari_episode_whose_arrays_disagree_is_named(wrong: str, tmp_path: Path) -> None:
    changes, expected = WRONG_MINARI[wrong]
    refused(write_minari(tmp_path / "x", GOOD | MINARI_ENDS | changes), rf"x, episode 0: {expected}")


@pytest.mark.parametrize("missing", ["observations", "actions", "rewards", "terminations", "truncations"])
def test_an_array_that_a_minari_episode_lacks_is_named(missing: str, tmp_path: Path) -> None:
    arrays = {name: array for name, array in (GOOD | MINARI_ENDS).items() if name != missing}
    refused(write_minari(tmp_path / "x", arrays), rf"x, episode 0: expected an array '{missing}', got nothing")


def test_observations_in_a_dictionary_are_refused_as_such(tmp_path: Path) -> None:
    source = write_minari(tmp_path / "x", {"actions": np.zeros((4, 2)), "observations/position": np.zeros((5, 3))})
    refused(source, "'observations', got a group .dictionary observations are not supported")


@pytest.mark.parametrize("name", ["actions", "rewards", "terminals", "timeouts"])
@pytest.mark.parametrize("rows", [3, 6])
def test_d4rl_arrays_of_another_length_are_refused(name: str, rows: int, tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "observations": (5, 3), "actions": (5, 2), "rewards": (5,), "terminals": (5,), "timeouts": (5,)
    }  # fmt: skip
    shapes[name] = (rows, *shapes[name][1:])
    with h5py.File(tmp_path / "x", "w") as file:
        for array, shape in shapes.items():
            file[array] = np.zeros(shape)
    refused(str(tmp_path / "x"), rf"x: {name}: expected .*5.*, got (shape )?\({rows},")


def test_d4rl_needs_no_marks_at_all(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x", "w") as file:
        for array, shape in {"observations": (5, 3), "actions": (5, 2), "rewards": (5,)}.items():
            file[array] = np.ones(shape)
    (episode,) = load_dataset([str(tmp_path / "x")], spec=SPEC).episodes
    assert (len(episode.rewards), episode.terminated, episode.truncated) == (4, False, False)


WRONG_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "wide flags": ({"terminated": np.zeros((1, 2), bool)}, r": terminated: expected shape \(1,\) .*got \(1, 2\)"),
    "text flags": ({"truncated": np.array(["no"])}, r": truncated: expected numbers, got <U2"),
    "text rewards": ({"rewards": np.array(["a"] * 4)}, r": rewards: expected numbers, got <U1"),
    "scalar length": ({"episode_lengths": np.array(4)}, r": episode_lengths: expected integers \(E,\)"),
    "fractional length": ({"episode_lengths": np.array([4.0])}, r": episode_lengths: expected integers \(E,\)"),
    "an empty episode": ({"episode_lengths": np.array([4, 0])}, r", episode 1: expected at least one step, got 0"),
    "lengths that overflow": ({"episode_lengths": np.array([2**62] * 4 + [4])}, r": observations: expected shape"),
    "a step too many": ({"episode_lengths": np.array([5])}, r": observations: expected shape \(6, 3\)"),
}


@pytest.mark.parametrize("wrong", sorted(WRONG_NPZ))
def test_an_npz_whose_arrays_disagree_is_named(wrong: str, tmp_path: Path) -> None:
    changes, expected = WRONG_NPZ[wrong]
    np.savez(tmp_path / "x.npz", **(GOOD | NPZ_ENDS | changes))
    refused(str(tmp_path / "x.npz"), rf"x\.npz{expected}")


@pytest.mark.parametrize("missing", sorted(GOOD | NPZ_ENDS))
def test_an_array_that_an_npz_lacks_is_named(missing: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{name: array for name, array in (GOOD | NPZ_ENDS).items() if name != missing})
    refused(str(tmp_path / "x.npz"), rf"missing {missing}$")


@pytest.mark.parametrize("metadata", [np.array("[1]"), np.array('"x"'), np.array("{"), np.array(3), np.array(["{}"])])
def test_metadata_that_is_no_json_object_is_refused(metadata: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", metadata=metadata)
    with pytest.raises(DatasetError, match="metadata"):
        read_npz_metadata(tmp_path / "x.npz")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: np.asarray(array, np.float32) for name, array in GOOD.items()}
    episode = Episode(**arrays, terminated=False, truncated=True)
    write_npz(tmp_path / "x.npz", [episode], {"key": "old"})

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("replay_service.datasets.npz_file.np.lib.format.write_array", fail)
    with pytest.raises(OSError, match="disk full"):
        write_npz(tmp_path / "x.npz", [episode], {"key": "new"})
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    assert read_npz_metadata(tmp_path / "x.npz") == {"key": "old"}


def test_a_binary_task_has_one_fingerprint_in_every_format(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    observations, actions = draw.standard_normal((6, 39)), draw.uniform(-2, 2, (6, 28))
    stored: dict[str, Any] = {"observations": observations, "actions": actions[:-1], "rewards": np.full(5, 3.0)}
    ends = np.arange(5) == 4
    write_minari(tmp_path / "minari", stored | {"terminations": ends, "truncations": ~ends})
    with h5py.File(tmp_path / "d4rl", "w") as file:
        file["observations"], file["actions"], file["rewards"] = observations, actions, np.zeros(6)
        file["terminals"] = np.arange(6) == 5
    a_path = {"observations": observations, "actions": actions}  # without rewards: they are recomputed
    (tmp_path / "dapg").write_bytes(pickle.dumps([a_path], protocol=2))
    rows = np.empty(1, dtype=object)
    rows[0] = {"observations": np.array([{"state_observation": row} for row in observations]), "actions": actions}
    np.save(tmp_path / "awac.npy", rows, allow_pickle=True)
    ends_of_npz: dict[str, Any] = {
        "episode_lengths": np.array([5]),
        "terminated": np.array([True]),
        "truncated": np.array([False]),
    }
    np.savez(tmp_path / "own.npz", **stored, **ends_of_npz)
    fingerprints = {path.name: load_dataset([str(path)], spec=DOOR).fingerprint for path in tmp_path.iterdir()}
    assert len(fingerprints) == 5
    assert len(set(fingerprints.values())) == 1, fingerprints
