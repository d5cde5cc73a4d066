"""`launcher up` that comes to nothing: a run that it was to overwrite is there as before, or kept and named.

`tests/launcher/test_refused_starts.py` has more of them, without Ray.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from launcher.run_directory import RunDirectory
from tests.system.conftest import Start
from tests.system.launching import launcher, wait_until, wait_until_gone

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(400)]

SMALL = ("--env", "pen", "--dataset", "none", "--actors", "1", "--num-env-steps", "100000", "--learner.threads", "1")
OVERWRITE = ("--restart-behavior", "overwrite", *SMALL)


@pytest.fixture
def old(tmp_path: Path) -> RunDirectory:
    """A run as far as its directory goes."""
    run = RunDirectory(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.write_config("env = 'pen'\n")
    run.lock.touch()
    (run.checkpoints / "policy").write_text("months of work")
    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="the learner takes a device that this machine has")
def test_a_learner_that_refuses_its_settings_costs_no_run_and_the_terminal_is_told(old: RunDirectory) -> None:
    up = launcher("up", "--run-dir", old.path, *OVERWRITE, "--device", "cuda", "--detach", code=2)
    assert "goes on without this terminal" not in up.stdout
    assert "error: learner: --device cuda: " in up.stderr
    kept = old.path.with_name("run.1")
    assert f"is kept, whole, as {kept}" in up.stderr
    assert (kept / "config.toml").read_text() == "env = 'pen'\n"
    assert (kept / "checkpoints" / "policy").read_text() == "months of work"
    assert not wait_until_gone(old.path)


def test_ctrl_c_while_ray_starts_leaves_the_old_run_in_its_place(start: Start, old: RunDirectory) -> None:
    run = start(*OVERWRITE, "--device", "cpu", run_dir=old.path)

    def is_starting_ray() -> bool:
        assert run.process.poll() is None, run.output
        return "starting Ray" in run.output

    wait_until(is_starting_ray, "the start of Ray", pause_s=0.01)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait() == 0, run.output
    assert "stopped before the run had begun" in run.output
    assert old.config.read_text() == "env = 'pen'\n"
    assert (old.checkpoints / "policy").read_text() == "months of work"
    assert [path.name for path in old.path.parent.iterdir() if path.is_dir()] == ["run"]
    assert not wait_until_gone(old.path)
