"""What a header claims is checked against the environment and the limits before it is read."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from replay_service.datasets import load_dataset
from replay_service.datasets.claims import MAX_BYTES, MAX_EXPANSION, Claims
from replay_service.errors import DatasetError
from replay_service.experience import ExperienceSpec

SPEC = ExperienceSpec("Custom-v0", 3, 2, 50)
FLOAT32: np.dtype[np.generic] = np.dtype(np.float32)


def claims_on_a_large_file(tmp_path: Path, **limits: int) -> Claims:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(2**30)  # sparse: takes no space
    return Claims("the source", path, SPEC, **limits)


def test_all_arrays_of_a_source_count_towards_one_limit(tmp_path: Path) -> None:
    claims = claims_on_a_large_file(tmp_path, bytes_left=1_000)
    claims.admit("rewards", (150,), FLOAT32)
    with pytest.raises(
        DatasetError, match=r"the source, episode 4: rewards of shape \(101,\) claims 404 bytes, 400 are"
    ):
        claims.admit("rewards", (101,), FLOAT32, episode=4)
    claims.admit("rewards", (100,), FLOAT32)
    assert claims.claimed_bytes == 1_000


def test_a_narrow_type_counts_as_the_float32_it_becomes(tmp_path: Path) -> None:
    claims = claims_on_a_large_file(tmp_path)
    claims.admit("rewards", (100,), np.dtype(np.int8))
    claims.admit("rewards", (100,), np.dtype(np.float64))
    assert claims.claimed_bytes == 400 + 800


def test_the_limit_is_the_dataset_s_and_for_a_small_file_its_own(tmp_path: Path) -> None:
    assert claims_on_a_large_file(tmp_path).limit_bytes == MAX_BYTES
    (tmp_path / "y").write_bytes(bytes(2**18))
    assert Claims("y", tmp_path / "y", SPEC).limit_bytes == MAX_EXPANSION * 2**18


def test_sources_share_the_limit_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_flat(tmp_path / "x.hdf5", rows=10)
    once = 10 * (3 + 2 + 1) * 4
    monkeypatch.setattr("replay_service.datasets.loading.MAX_BYTES", 2 * once)
    assert load_dataset([path] * 2, spec=SPEC).num_episodes == 2
    with pytest.raises(DatasetError, match="are left of the limit"):
        load_dataset([path] * 3, spec=SPEC)


def write_flat(path: Path, *, rows: int, width: int = 3) -> str:
    """A D4RL file; of many rows only the headers are written."""
    with h5py.File(path, "w") as file:
        for name, shape in (("observations", (rows, width)), ("actions", (rows, 2)), ("rewards", (rows,))):
            file.create_dataset(name, shape=shape, dtype=np.float32, chunks=True)
    return str(path)


def peak_bytes_of_a_refusal(source: str, expected: str) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=expected):
            load_dataset([source], spec=SPEC)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_hdf5_file_of_another_environment_is_not_read(tmp_path: Path) -> None:
    source = write_flat(tmp_path / "x.hdf5", rows=2_000_000, width=4)
    expected = r"observations: environment Custom-v0 has 3 values a step, got an array of shape \(2000000, 4\)"
    assert peak_bytes_of_a_refusal(source, expected) < 2**20


def test_an_hdf5_file_that_claims_more_than_it_can_hold_is_not_read(tmp_path: Path) -> None:
    source = write_flat(tmp_path / "x.hdf5", rows=10**8)  # 1.2 GB: below the dataset's limit, not below the file's
    assert peak_bytes_of_a_refusal(source, "are left of the limit") < 2**20


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2_000_000, 4), r"observations: environment Custom-v0 has 3 values"),
        ((10**8, 3), "are left of the limit"),
        ((-5, 3), "negative shape"),
    ],
)
def test_a_member_of_an_npz_is_not_read_when_its_header_is_refused(
    shape: tuple[int, ...], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.npz"
    arrays: dict[str, Any] = {"actions": np.zeros((4, 2)), "rewards": np.zeros(4), "episode_lengths": np.array([4])}
    np.savez_compressed(path, **arrays, terminated=np.zeros(1, bool), truncated=np.zeros(1, bool))
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("observations.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for _ in range(32):
            file.write(bytes(2**20))
    assert peak_bytes_of_a_refusal(str(path), expected) < 2**22


def test_a_dataset_beyond_the_memory_is_the_user_s_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    source = write_flat(tmp_path / "x.hdf5", rows=10)
    monkeypatch.setattr("replay_service.datasets.hdf5_file.np.asarray", refuse)
    with pytest.raises(DatasetError, match="fits into this machine's memory"):
        load_dataset([source], spec=SPEC)
