"""The commands about data and pictures on a whole run: while it is up, and afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from replay_service.connection import RedisEndpoint
from tests.system.conftest import Start
from tests.system.launching import SMALL_PEN, assert_sound, launcher

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]


def command(*words: object, cwd: Path) -> str:
    """What `launcher words` prints."""
    return launcher(*words, cwd=cwd).stdout


def test_a_run_is_looked_at_while_it_is_up_and_when_it_is_done(start: Start, tmp_path: Path) -> None:
    run = start(*SMALL_PEN, "--rollout-length", "70", "--num-env-steps", "1200")
    run.wait_until(lambda state: state.env_steps > 0)
    directory = str(run.run_dir)
    command("report", directory, "--output", str(tmp_path / "up.html"), cwd=tmp_path)
    assert run.wait() == 0, run.output + run.logs()

    found = command("replay", "ls", directory, "--limit", "3", cwd=tmp_path)
    assert re.search(r" 1,200 steps, 2 actors, ", found)
    assert "1,200 steps;" in command("replay", "export", directory, "--output", "pen-online-v0", cwd=tmp_path)
    inspected = command("dataset", "inspect", "pen-online-v0", cwd=tmp_path)
    assert "`launcher up --env pen` takes it" in inspected
    assert "1,200 steps" in inspected

    command("plot", directory, "--output", "pen.svg", "--csv", "pen.csv", cwd=tmp_path)
    rows = (tmp_path / "pen.csv").read_text().splitlines()[1:]
    assert [row.split(",")[3] for row in rows] == [str(e["env_steps"]) for e in run.summary()["evaluations"][1:]]

    command("report", directory, cwd=tmp_path)
    page = (run.run_dir / "report.html").read_text()
    assert ">finished, up for" in page
    password = RedisEndpoint.load(run.run_dir / "redis" / "connection.json").password
    assert password not in page + (tmp_path / "up.html").read_text()
    assert "doctor" in page
    assert_sound(run.run_dir)
