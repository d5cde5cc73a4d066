"""Whether a run is there to be looked at, or why it cannot be."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from launcher import cli
from launcher.experiment import ExperimentConfig
from launcher.run_connection import snapshot_reader
from launcher.run_directory import RunDirectory
from launcher.watch import watch_run
from replay_service.config import RunConfig
from replay_service.connection import RedisEndpoint
from replay_service.errors import RunDirectoryError
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.run_state import RunStateStore
from tests.launcher.test_run_directory import HOLD


@pytest.fixture
def run(tmp_path: Path, redis_endpoint: RedisEndpoint, run_config: RunConfig) -> RunDirectory:
    """Its Redis answers, and does not hold it yet."""
    made = RunDirectory(tmp_path / "pen[lr=3e-4]")
    made.connection.parent.mkdir(parents=True)
    made.write_config(ExperimentConfig(run=run_config).to_toml())
    redis_endpoint.save(made.connection)
    return made


@contextmanager
def launcher_of(run: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run directory, as a launcher does."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


def test_a_run_is_absent_until_redis_holds_it(
    run: RunDirectory, redis_client: RedisClient, run_config: RunConfig
) -> None:
    assert snapshot_reader(run) is None
    RunStateStore(redis_client, Keys(run_config.run_id)).initialise(run_config)
    assert snapshot_reader(run) is not None
    RedisEndpoint("redis://127.0.0.1:1").save(run.connection)
    assert snapshot_reader(run) is None
    run.connection.unlink()
    assert snapshot_reader(run) is None


@pytest.mark.parametrize("command", [["status"], ["attach"], ["watch", "--once"], ["watch"]])
def test_why_it_can_never_be_seen_is_told(
    run: RunDirectory, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run.connection.chmod(0o644)
    with launcher_of(run):
        assert cli.main([command[0], str(run.path), *command[1:]]) == 2
    assert f"run `chmod 600 {run.connection}`" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["status"], ["watch"]])
def test_refused_credentials_are_told(
    run: RunDirectory, redis_endpoint: RedisEndpoint, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    RedisEndpoint(redis_endpoint.url, "wrong").save(run.connection)
    with launcher_of(run):
        assert cli.main([command[0], str(run.path), *command[1:]]) == 2
    assert "refused the credentials" in capsys.readouterr().err


def test_a_damaged_file_is_told(run: RunDirectory) -> None:
    run.connection.write_text("{")
    with pytest.raises(RunDirectoryError, match="is damaged"):
        snapshot_reader(run)


def test_the_name_of_a_run_is_shown_as_it_is(run: RunDirectory, state: RunStateStore) -> None:
    with launcher_of(run) as holder:

        class Shown(io.StringIO):
            """Ends the launcher once the first line is shown."""

            def write(self, text: str) -> int:
                holder.kill()
                return super().write(text)

        shown = Shown()
        watch_run(run, Console(file=shown, width=300), once=False)
    assert shown.getvalue().endswith(f"{run.path} is down\n")
