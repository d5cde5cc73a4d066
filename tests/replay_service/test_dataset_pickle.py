"""Pickles: what rebuilds arrays of numbers is read in every protocol; anything else is refused and does nothing."""

from __future__ import annotations

import os
import pickle
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replay_service.datasets import load_dataset
from replay_service.errors import DatasetError
from replay_service.experience import ExperienceSpec

SPEC = ExperienceSpec("Custom-v0", 3, 2, 50)
ROWS = 5
OBSERVATIONS = np.arange(ROWS * 3, dtype=np.float64).reshape(ROWS, 3)
ACTIONS = np.linspace(-1.5, 1.5, ROWS * 2).reshape(ROWS, 2)
REWARDS = np.arange(ROWS, dtype=np.float64)
RECONSTRUCT = np.zeros(1).__reduce__()[0]
ARRAY_STATE_VERSION = 1


class Reduced:
    """Pickles as a call of `function`, then a state."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def a_path(**changes: Any) -> dict[str, Any]:
    return {"observations": OBSERVATIONS, "actions": ACTIONS, "rewards": REWARDS, **changes}


def saved(folder: Path, content: Any, protocol: int = 2) -> str:
    path = folder / "x.pickle"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return str(path)


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        np.asfortranarray,
        lambda array: array.astype(">f4"),
        list,
        lambda array: array.tolist(),
        lambda array: [[np.float64(value) for value in row] if row.ndim else np.float64(row) for row in array],
    ],
    ids=["array", "fortran", "big endian", "list of rows", "lists of numbers", "lists of NumPy numbers"],
)
def test_numbers_are_read_in_every_protocol_and_form(form: Callable[[Any], Any], protocol: int, tmp_path: Path) -> None:
    content = [a_path(observations=form(OBSERVATIONS), actions=form(ACTIONS), rewards=form(REWARDS))]
    (episode,) = load_dataset([saved(tmp_path, content, protocol)], spec=SPEC).episodes
    np.testing.assert_array_equal(episode.observations, OBSERVATIONS.astype(np.float32))
    np.testing.assert_array_equal(episode.actions, ACTIONS[:-1].astype(np.float32))
    np.testing.assert_array_equal(episode.rewards, REWARDS[:-1].astype(np.float32))
    assert (episode.terminated, episode.truncated) == (False, False)


def test_what_is_not_asked_for_may_be_of_any_type(tmp_path: Path) -> None:
    extra = {"env_infos": [{"goal": np.array(["near"]), "seen": np.bool_(True)}], "text": np.array([b"a"])}
    infos = np.array([{"a": 1}, None], dtype=object)
    assert load_dataset([saved(tmp_path, [a_path(**extra, agent_infos=infos)])], spec=SPEC).num_steps == ROWS - 1


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, rf"{os.system.__module__}\.system"),
        (eval, r"(builtins|__builtin__)\.eval"),
        (np.load, r"numpy\.load"),
    ],
    ids=["os.system", "eval", "numpy.load"],
)
def test_a_refused_global_is_named_and_not_called(function: Any, name: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    argument = {os.system: f"touch {marker}", eval: f"open({str(marker)!r}, 'w')", np.load: str(marker)}[function]
    with pytest.raises(DatasetError, match=f"refused to load .*{name} from a pickle"):
        load_dataset([saved(tmp_path, [a_path(extra=Reduced(function, (argument,)))], protocol)], spec=SPEC)
    assert not marker.exists()


def test_the_array_type_cannot_be_called_for_memory(tmp_path: Path) -> None:
    source = saved(tmp_path, [a_path(observations=Reduced(np.ndarray, ((ROWS, 3),)))])
    with pytest.raises(DatasetError, match="not a readable pickle"):
        load_dataset([source], spec=SPEC)


@pytest.mark.parametrize("shape", [(10**15, 3), (ROWS + 1, 3), (-ROWS, -3), ("5", 3)])
def test_an_array_holds_the_bytes_that_are_there(shape: tuple[Any, ...], tmp_path: Path) -> None:
    state = (ARRAY_STATE_VERSION, shape, np.dtype("f8"), False, OBSERVATIONS.tobytes())
    forged = Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), state)
    with pytest.raises(DatasetError, match=r"not a readable pickle: ValueError: an array"):
        load_dataset([saved(tmp_path, [a_path(observations=forged)])], spec=SPEC)


def test_the_flags_of_a_dtype_do_not_reach_numpy(tmp_path: Path) -> None:
    holds_objects = 63  # NumPy itself believes them, and would follow the data as pointers
    kind = Reduced(np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, holds_objects))
    state = (ARRAY_STATE_VERSION, OBSERVATIONS.shape, kind, False, OBSERVATIONS.tobytes())
    forged = Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), state)
    (episode,) = load_dataset([saved(tmp_path, [a_path(observations=forged)])], spec=SPEC).episodes
    np.testing.assert_array_equal(episode.observations, OBSERVATIONS.astype(np.float32))


@pytest.mark.parametrize(("kind", "name"), [(np.matrix, r"numpy\.matrix"), (np.dtype, "an array type other than")])
def test_only_the_plain_array_type_is_rebuilt(kind: type, name: str, tmp_path: Path) -> None:
    state = (ARRAY_STATE_VERSION, OBSERVATIONS.shape, OBSERVATIONS.dtype, False, OBSERVATIONS.tobytes())
    with pytest.raises(DatasetError, match=f"refused to load {name}"):
        load_dataset(
            [saved(tmp_path, [a_path(observations=Reduced(RECONSTRUCT, (kind, (0,), b"b"), state))])], spec=SPEC
        )


WRONG_PATHS: dict[str, tuple[dict[str, Any], str]] = {
    "no actions": ({"observations": OBSERVATIONS}, r"expected an array 'actions', got observations"),
    "complex": (a_path(observations=OBSERVATIONS * 1j), r"observations: expected an array of numbers"),
    "text": (a_path(actions=ACTIONS.astype(str)), r"actions: expected an array of numbers"),
    "objects": (a_path(observations=OBSERVATIONS.astype(object)), r"observations: expected an array of numbers"),
    "a word for rewards": (a_path(rewards="abc"), r"rewards: expected an array of numbers, got str"),
    "a dictionary for rewards": (a_path(rewards={"a": 1}), r"rewards: expected an array of numbers, got a dictionary"),
    "mixed rows": (
        a_path(observations=[{"state_observation": OBSERVATIONS[0]}, 3]),
        r"observations: expected rows of shape \(3,\) as the first, got \(\) in row 1",
    ),
    "another key": (
        a_path(observations=[{"pixels": row} for row in OBSERVATIONS]),
        r"observations: expected rows of numbers, got a dictionary without 'state_observation'",
    ),
    "an integer beyond float64": (a_path(rewards=[10**400] * ROWS), r"rewards: expected finite values"),
    "wide rows": (
        a_path(observations=[[0.0] * 4] * ROWS),
        r"observations: environment Custom-v0 has 3 values a step, got .*\(5, 4\)",
    ),
    "one row": (
        {"observations": OBSERVATIONS[:1], "actions": ACTIONS[:1], "rewards": REWARDS[:1]},
        r"expected at least one step",
    ),
    "nothing": (a_path(observations=[]), r"observations: expected an array of numbers, got an empty list"),
}


@pytest.mark.parametrize("wrong", sorted(WRONG_PATHS))
def test_a_path_that_is_none_is_named(wrong: str, tmp_path: Path) -> None:
    content, expected = WRONG_PATHS[wrong]
    source = saved(tmp_path, [a_path(), content])
    with pytest.raises(DatasetError, match=rf"^{re.escape(source)}, episode 1: {expected}"):
        load_dataset([source], spec=SPEC)


def test_a_path_that_is_shared_counts_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = 8 * (OBSERVATIONS.size + ACTIONS.size + REWARDS.size)
    monkeypatch.setattr("replay_service.datasets.loading.MAX_BYTES", 100 * once)
    source = saved(tmp_path, [a_path()] * 100)
    assert load_dataset([source], spec=SPEC).num_episodes == 100
    with pytest.raises(DatasetError, match=r"episode 100: observations .* 0 are left of the limit"):
        load_dataset([saved(tmp_path, [a_path()] * 101)], spec=SPEC)


@pytest.mark.parametrize("header", [b"{'descr': '|O', 'shape': (", b"x =\n  (", b"(" * 300, b"{'descr': '|O'}", b""])
def test_a_damaged_npy_header_gives_the_declared_error(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DatasetError, match=r"damaged \.npy file"):
        load_dataset([str(path)], spec=SPEC)


def test_an_npy_file_of_plain_numbers_is_told_from_one_of_paths(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", OBSERVATIONS)
    with pytest.raises(DatasetError, match="expected an object array of paths, got float64"):
        load_dataset([str(tmp_path / "x.npy")], spec=SPEC)


BOMBS = {
    # Found by fuzzing: a memo is made as long as its highest index.
    "memo index": b"\x80\x02]r" + (2**30).to_bytes(4, "little") + b".",
    "memo index in text": b"(lp1073741824\n.",
    "bytearray": b"\x80\x05\x96" + (2**34).to_bytes(8, "little") + b".",
    "bytes": b"\x80\x04\x8e" + (2**34).to_bytes(8, "little") + b".",
    "text": b"\x80\x04\x8d" + (2**34).to_bytes(8, "little") + b".",
    "frame": b"\x80\x04\x95" + (2**34).to_bytes(8, "little") + b".",
    # One text of a megabyte, encoded two thousand times.
    "text encoded again and again": b"\x80\x02c_codecs\nencode\nq\x00X" + (2**20).to_bytes(4, "little")
    + b"x" * 2**20 + b"q\x01X\x06\x00\x00\x00latin1q\x02](" + b"h\x00h\x01h\x02\x86R" * 2_000 + b"e.",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_small_file_cannot_take_much_memory(bomb: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pickle"
    path.write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match="not a readable pickle"):
            load_dataset([str(path)], spec=SPEC)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * len(bomb) + 2**20
