"""`launcher scale` and `launcher down` from another terminal: what they refuse, and how long they wait."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import cli, run_commands
from launcher.experiment import ExperimentConfig, LauncherConfig
from launcher.run_directory import RunDirectory
from replay_service.config import ReplayConfig, RunConfig
from replay_service.connection import RedisEndpoint
from replay_service.run_state import Phase, RunStateStore
from tests.conftest import PATIENCE_S, WaitUntil


@pytest.fixture
def run(tmp_path: Path, run_config: RunConfig, redis_endpoint: RedisEndpoint, state: RunStateStore) -> RunDirectory:
    """A run whose Redis is up, and whose launcher is whoever holds it."""
    state.open_places(run_config)
    directory = RunDirectory(tmp_path / "run")
    for folder in (directory.logs, directory.connection.parent):
        folder.mkdir(parents=True)
    configure(directory, run_config)
    redis_endpoint.save(directory.connection)
    directory.ready.touch()
    return directory


def configure(run: RunDirectory, config: RunConfig) -> None:
    run.write_config(ExperimentConfig(run=config, launcher=LauncherConfig(stop_grace_s=0.1)).to_toml())


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that is refused says."""
    assert cli.main(list(words)) == 2
    return capsys.readouterr().err


@contextmanager
def follower(state: RunStateStore, wait_until: WaitUntil, act: Callable[[], object]) -> Iterator[None]:
    """Does something once a number of actors was asked for."""

    def follow() -> None:
        wait_until(lambda: state.read().actors_wanted == 5, "the number to be asked for")
        act()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


class TestScale:
    def test_a_run_that_is_not_up_is_told_how_to_resume(
        self, run: RunDirectory, capsys: pytest.CaptureFixture[str]
    ) -> None:
        said = refusal(capsys, "scale", str(run.path), "--actors", "5")
        assert "is not running" in said
        assert "--restart-behavior resume --actors 5" in said

    def test_a_run_in_lockstep_keeps_its_actors(
        self, run: RunDirectory, run_config: RunConfig, capsys: pytest.CaptureFixture[str]
    ) -> None:
        configure(run, replace(run_config, lockstep=True, replay=ReplayConfig(capacity=run_config.num_env_steps)))
        with run.held():
            assert "takes turns among the actors it began with" in refusal(
                capsys, "scale", str(run.path), "--actors", "5"
            )

    def test_a_run_that_is_still_starting_is_told_to_be_tried_again(
        self, run: RunDirectory, state: RunStateStore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run.ready.unlink()
        with run.held():
            assert "is still starting" in refusal(capsys, "scale", str(run.path), "--actors", "5")
        assert state.read().actors_wanted != 5

    def test_a_finished_run_needs_no_actors(
        self, run: RunDirectory, state: RunStateStore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        state.set_phase(Phase.FINISHED)
        with run.held():
            assert "is finished" in refusal(capsys, "scale", str(run.path), "--actors", "5")
        assert state.read().actors_wanted != 5

    def test_it_waits_until_the_launcher_has_followed(
        self, run: RunDirectory, run_config: RunConfig, state: RunStateStore, wait_until: WaitUntil,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        with run.held(), follower(state, wait_until, lambda: state.set_actors(replace(run_config, actors=5))):
            assert cli.main(["scale", str(run.path), "--actors", "5"]) == 0
        assert "has places for 5 actors" in capsys.readouterr().out

    def test_a_launcher_that_cannot_follow_is_not_waited_for(
        self, run: RunDirectory, state: RunStateStore, wait_until: WaitUntil, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with run.held(), follower(state, wait_until, lambda: state.request_actors(2)):
            assert "the launcher stays at 2 actors" in refusal(capsys, "scale", str(run.path), "--actors", "5")

    def test_a_run_that_ends_meanwhile_is_not_waited_for(
        self, run: RunDirectory, state: RunStateStore, wait_until: WaitUntil, capsys: pytest.CaptureFixture[str]
    ) -> None:
        held = run.held()
        held.__enter__()
        with follower(state, wait_until, lambda: held.__exit__(None, None, None)):
            assert "ended meanwhile" in refusal(capsys, "scale", str(run.path), "--actors", "5")

    def test_a_launcher_that_does_not_look_is_given_up(
        self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(run_commands, "_SCALE_TIMEOUT_S", 0.3)
        with run.held():
            assert "the launcher has not followed" in refusal(capsys, "scale", str(run.path), "--actors", "5")


class TestDown:
    def test_it_asks_through_redis_and_gives_up_a_launcher_that_does_not_look(
        self, run: RunDirectory, state: RunStateStore, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.setattr(run_commands, "_DOWN_TIMEOUT_S", 0.3)
        with run.held():
            assert "is still held by process" in refusal(capsys, "down", str(run.path))
        assert state.read().stop_requested == "launcher down"

    def test_settings_of_another_version_do_not_keep_it_from_asking_and_waiting(
        self, run: RunDirectory, state: RunStateStore, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.setattr(run_commands, "_DOWN_TIMEOUT_S", 0.3)
        monkeypatch.setattr(run_commands, "_ROLES", 0)
        table = tomllib.loads(run.config.read_text(encoding="utf-8"))["launcher"]
        assert "stop_grace_s" in table
        run.config.write_text(run.config.read_text(encoding="utf-8").replace("[launcher]", "[launcher]\nlater = 1"))
        with run.held():
            assert "is still held by process" in refusal(capsys, "down", str(run.path))
        assert state.read().stop_requested == "launcher down"

    def test_a_launcher_whose_redis_cannot_be_asked_is_asked_by_signal(
        self, run: RunDirectory, state: RunStateStore, wait_until: WaitUntil, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run.connection.unlink()
        with subprocess.Popen(["flock", "--no-fork", str(run.lock), "sleep", "300"]) as launcher:
            run.lock.write_text(json.dumps({"pid": launcher.pid, "host": socket.gethostname()}), encoding="utf-8")
            wait_until(lambda: run.holder() is not None, "the stand-in of the launcher to hold the lock")
            assert cli.main(["down", str(run.path)]) == 0
            assert launcher.wait(PATIENCE_S) < 0
        assert "asking by signal" in capsys.readouterr().err
        assert state.read().stop_requested == ""

    def test_a_launcher_on_another_machine_cannot_be_signalled(
        self, run: RunDirectory, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run.connection.unlink()
        with run.held():
            run.lock.write_text(json.dumps({"pid": 1, "host": "elsewhere"}), encoding="utf-8")
            said = refusal(capsys, "down", str(run.path))
        assert "is run on elsewhere" in said
        assert "run `launcher down` there" in said
