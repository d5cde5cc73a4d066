"""`launcher dataset inspect`: what it prints, its exit code, its histograms."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launcher import cli
from launcher.dataset_inspection import bins
from replay_service.demonstrations import shipped_path
from tests.replay_service.test_datasets import EPISODES, make_episode, write_dapg, write_own


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_a_shipped_dataset_is_told_by_its_dimensions(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dataset", "inspect", str(shipped_path("door"))]) == 0
    out = words(capfd.readouterr().out)
    assert "episodes 25, 5,000 steps" in out
    assert "success as door 100 % at any step, 100 % at the last step" in out
    assert "`launcher up --env door` takes it, the task that its dimensions speak for" in out


def test_a_dataset_of_another_environment_is_a_finding(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dataset", "inspect", str(shipped_path("door")), "--env", "pen"]) == 1
    out = words(capfd.readouterr().out)
    assert "BAD `launcher up --env pen` refuses it" in out
    assert "environment pen has 45 values a step" in out
    assert "success as" not in out


def test_an_ordinary_environment_is_asked_for_its_bounds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    episode = replace(make_episode(3), actions=np.array([[-2.0], [1.5], [2.5]], dtype=np.float32))
    path = str(write_own(tmp_path / "a.npz", [episode]))
    assert cli.main(["dataset", "inspect", path, "--env", "Pendulum-v1"]) == 0
    out = words(capfd.readouterr().out)
    assert "33.33 % outside the bounds of Pendulum-v1" in out
    assert "`launcher up --env Pendulum-v1` takes it" in out
    assert cli.main(["dataset", "inspect", path]) == 0
    out = words(capfd.readouterr().out)
    assert "100.00 % outside [-1, 1]" in out
    assert "of no task that its dimensions speak for: compare it with an environment by --env" in out


def test_nan_is_a_finding(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = replace(EPISODES[0], rewards=np.array([0, np.nan, 0, 0], dtype=np.float32))
    assert cli.main(["dataset", "inspect", str(write_own(tmp_path / "a.npz", [broken, EPISODES[1]]))]) == 1
    out = words(capfd.readouterr().out)
    assert "BAD rewards: 1 of 5 values are NaN or infinite" in out
    assert "1 not finite" in out


def test_the_histograms_can_be_drawn(tmp_path: Path) -> None:
    path = str(write_dapg(tmp_path / "a.pickle", EPISODES))
    for name in ("first.svg", "second.svg"):
        assert cli.main(["dataset", "inspect", path, "--plot", str(tmp_path / name)]) == 0
    picture = (tmp_path / "first.svg").read_text()
    for text in ("a.pickle: 3 episodes, 12 steps", "episode length, steps", "return, as stored"):
        assert f"<!-- {text} -->" in picture
    assert picture == (tmp_path / "second.svg").read_text()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"\x89HDF\r\n\x1a\n and nothing", [], "is damaged or not HDF5"),
        (b"PK\x03\x04 and nothing", [], "is a damaged .npz file"),
        (b"\x80\x02 and nothing", [], "is not a readable pickle"),
        (b"text", [], "unknown format"),
        (None, [], "no such file or directory"),
        (b"text", ["--plot", "a.jpg"], "--plot: expected a file that ends in .png or .svg"),
        (b"text", ["--env", "penn"], "Did you mean 'pen'"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_2(
    content: bytes | None, options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["dataset", "inspect", str(path), *options]) == 2
    out, err = capfd.readouterr()
    assert message in out + err
    assert "Traceback" not in out + err


def test_bins_are_counted_by_hand() -> None:
    assert bins([]) == []
    assert bins([3, 3, 3]) == [(3, 3, 3)]
    assert bins([0, 1, 4, 9, 10], count=2) == [(0, 5, 3), (5, 10, 2)]


def test_values_that_differ_by_rounding_share_a_bin() -> None:
    assert bins([0.3, 0.1 + 0.2, 0.3]) == [(0.3, 0.1 + 0.2, 3)]
    assert bins([0.0, 5e-324]) == [(0.0, 5e-324, 2)]
    assert [count for _low, _high, count in bins([1.0, 1.0 + 1e-10])] == [1, *[0] * 8, 1]


@pytest.mark.parametrize("rewards", [(0.1, 0.2, 0.3), (1e17, 1e17, 1e17)])
def test_returns_that_differ_by_rounding_are_shown_and_drawn(
    rewards: tuple[float, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    episodes = [
        replace(make_episode(3), rewards=np.array(order, dtype=np.float64)) for order in (rewards, rewards[::-1])
    ]
    returns = {float(np.sum(episode.rewards)) for episode in episodes}
    path, picture = str(write_own(tmp_path / "a.npz", episodes)), tmp_path / "a.svg"
    assert cli.main(["dataset", "inspect", path, "--plot", str(picture)]) == 0
    out = capfd.readouterr().out
    assert re.search(r"^ *(0\.6|3e\+17)  \S+ 2$", out, re.MULTILINE), (out, returns)
    assert picture.exists()


def test_returns_as_large_as_numbers_get_are_shown_and_not_drawn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    episodes = [replace(make_episode(1), rewards=np.array([reward])) for reward in (-1.7e308, 1.7e308, 1.7e308)]
    path, picture = str(write_own(tmp_path / "a.npz", episodes)), tmp_path / "a.svg"
    assert cli.main(["dataset", "inspect", path]) in (0, 1)
    out = words(capfd.readouterr().out)
    assert "-1.7e+308 to 1.7e+308, mean 5.66667e+307" in out
    assert "1.36e+308 to 1.7e+308" in out
    assert cli.main(["dataset", "inspect", path, "--plot", str(picture)]) == 2
    assert "--plot: expected returns of at most 1e+300, which an axis can show, got 1.7e+308" in capfd.readouterr().err
    assert not picture.exists()


def test_bins_as_wide_as_numbers_get_are_counted_by_hand() -> None:
    most = sys.float_info.max
    assert bins([-most, most, most, 1.0], count=2) == [(-most, 0.0, 1), (0.0, most, 3)]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_blocks_gets_another_bar(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "dataset", "inspect", str(shipped_path("door"))],
        capture_output=True, timeout=120, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    bar = "█" if encoding == "utf-8" else "#"
    assert 40 * bar in done.stdout.decode(encoding)
