"""What the launcher makes of a replay service that takes its time to open a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from launcher import up
from launcher.experiment import ExperimentConfig
from launcher.opening_notice import OpeningNotice
from launcher.program import RoleProgram
from launcher.run_directory import RunDirectory
from launcher.supervisor import RunFailed
from replay_service.connection import RedisEndpoint


def write(log: Path, text: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(f"2026-01-01 00:00:00,000 replay INFO {text}\n")


def test_the_last_line_of_this_session_is_repeated_every_ten_seconds(tmp_path: Path) -> None:
    now, said, log = [0.0], list[str](), tmp_path / "replay.log"
    write(log, "of an earlier session")
    notice = OpeningNotice(log, said.append, clock=lambda: now[0])
    silent = []
    for second in range(31):
        now[0] = float(second)
        if second == 12:
            write(log, "Redis loads its data: 10 of 90 MiB")
        silent.append(notice.look())
    assert said == [
        "waiting for the replay service since 10 s",
        "waiting for the replay service since 20 s: Redis loads its data: 10 of 90 MiB",
        "waiting for the replay service since 30 s: Redis loads its data: 10 of 90 MiB",
    ]
    assert (silent[11], silent[12], silent[30]) == (11.0, 0.0, 18.0)


def test_a_log_that_is_not_there_yet_is_an_empty_one(tmp_path: Path) -> None:
    notice = OpeningNotice(tmp_path / "replay.log", lambda _line: None)
    assert notice.look() < 10.0
    write(tmp_path / "replay.log", "begun")
    notice.look()


class Opened(Exception):
    """The run was found open."""


@dataclass
class Clock:
    """Time that passes only while the launcher sleeps, with what happens each time that it does."""

    meanwhile: Callable[[], None] = lambda: None
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(up, "time", made)
    monkeypatch.setattr(up, "OpeningNotice", partial(OpeningNotice, clock=made.monotonic))
    return made


@pytest.fixture
def wait_until_open(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The launcher's wait for a replay service that lives."""

    def raise_opened(_path: Path) -> RedisEndpoint:
        raise Opened

    monkeypatch.setattr(RedisEndpoint, "load", raise_opened)  # what the launcher asks for next
    run = up.Run(ExperimentConfig(), RunDirectory(tmp_path), Console(file=io.StringIO()))
    replay = RoleProgram("replay", (), tmp_path / "replay.log", num_cpus=1.0)
    supervisor: Any = SimpleNamespace(tend=lambda: None, waiting=[])
    room: Any = SimpleNamespace(look=lambda: None)
    display: Any = SimpleNamespace(say=lambda _line: None)
    return lambda: run._wait_until_open(supervisor, replay, room, display)


def test_a_service_that_goes_on_telling_is_waited_for(
    tmp_path: Path, clock: Clock, wait_until_open: Callable[[], None]
) -> None:
    told: list[float] = []

    def load() -> None:
        if clock.now >= 100.0 * (len(told) + 1):
            told.append(clock.now)
            write(tmp_path / "replay.log", f"Redis loads its data: {len(told)} of 20 MiB")
        if len(told) == 20:
            ready = RunDirectory(tmp_path).ready
            ready.parent.mkdir(exist_ok=True)
            ready.touch()

    clock.meanwhile = load
    with pytest.raises(Opened):
        wait_until_open()
    assert clock.now >= 2_000.0  # many times the silence after which it would have been given up


def test_a_service_that_says_nothing_is_given_up(clock: Clock, wait_until_open: Callable[[], None]) -> None:
    with pytest.raises(RunFailed, match=r"has written nothing for 120 s; its log: .*replay\.log"):
        wait_until_open()
    assert clock.now == pytest.approx(120.0, abs=0.2)
