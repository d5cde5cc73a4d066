"""`launcher scale`: actors come and go during a run, and no step is lost; `up --detach` and `attach`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from launcher.run_directory import RunDirectory
from replay_service.config_file import load_run_config
from tests.system.conftest import Start
from tests.system.launching import PATIENCE_S, SMALL_PEN, Launched, assert_sound, launcher, launcher_command, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]


def actors_that_store(run: Launched) -> set[str]:
    return {name for name, process in run.processes().items() if name.startswith("actor-") and process.is_alive}


def wait_for_actors(run: Launched, names: set[str]) -> None:
    wait_until(
        lambda: actors_that_store(run) == names, f"the actors {sorted(names)}",
        told=lambda: f"{actors_that_store(run)}\n{run.output}\n{run.logs()}",
    )  # fmt: skip


def test_actors_come_and_go_and_every_step_is_accounted_for(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000")
    run.wait_until(lambda state: state.env_steps > 0)
    state = run.state()
    assert (state.actors, state.actors_wanted) == (2, 2)

    launcher("scale", run.run_dir, "--actors", 4)
    wait_for_actors(run, {"actor-0", "actor-1", "actor-2", "actor-3"})
    assert run.state().actors == 4
    reached = run.state().env_steps
    run.wait_until(lambda state: state.env_steps > reached + 800)

    launcher("scale", run.run_dir, "--actors", 1)
    wait_for_actors(run, {"actor-0"})
    assert load_run_config(run.run_dir / "config.toml").actors == 1
    reached = run.state().env_steps
    run.wait_until(lambda state: state.env_steps > reached + 400)

    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait() == 0, run.output
    stopped = run.summary()
    assert (stopped["unaccounted_steps"], stopped["actor_restarts"]) == (0, 0)

    budget = stopped["env_steps"] + 400
    resumed = start("--restart-behavior", "resume", "--num-env-steps", str(budget))
    assert resumed.wait() == 0, resumed.output + resumed.logs()
    assert (resumed.summary()["env_steps"], resumed.summary()["unaccounted_steps"]) == (budget, 0)
    assert load_run_config(run.run_dir / "config.toml").actors == 1
    assert_sound(run.run_dir)

    refused = launcher("scale", run.run_dir, "--actors", 3, code=2)
    assert "is not running" in refused.stderr
    assert "--restart-behavior resume --actors 3" in refused.stderr
    launcher("scale", run.run_dir, "--actors", 0, code=2)


def test_a_detached_run_goes_on_is_attached_to_and_stopped(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    try:
        up = launcher("up", "--run-dir", run.path, "--detach", *SMALL_PEN, "--num-env-steps", 100_000)
        assert f"launcher attach {run.path}" in up.stdout
        holder = run.holder()
        assert holder is not None
        pid = int(str(holder["pid"]))
        assert os.getsid(pid) == pid  # no terminal's end is its end
        again = launcher("up", "--run-dir", run.path, "--restart-behavior", "resume", "--detach", code=2)
        assert f"process id {pid}" in again.stderr

        attached = subprocess.Popen(
            launcher_command("attach", run.path),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert attached.stdout is not None
        seen = ""
        while "env steps" not in seen:
            line = attached.stdout.readline()
            assert line, f"attach ended:\n{seen}"
            seen += line
        assert "leaves this screen, not the run" in seen
        attached.send_signal(signal.SIGINT)
        attached.communicate(timeout=PATIENCE_S)
        assert attached.returncode == 0
        assert run.holder() is not None
    finally:
        launcher("down", run.path)
    assert run.holder() is None
    assert "stopped: " in (run.logs / "launcher.out").read_text(encoding="utf-8")


def test_a_detached_run_that_cannot_start_says_why(tmp_path: Path) -> None:
    path = tmp_path / "run"
    up = launcher("up", "--run-dir", path, "--detach", *SMALL_PEN, "--replay.server-path", "/bin/true", code=2)
    assert "/bin/true" in up.stderr
    assert RunDirectory(path).holder() is None
