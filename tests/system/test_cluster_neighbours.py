"""A run on a cluster that is not its own: another run is there already, or another version of Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from tests.system.cluster import ENDLESS, RUN, SMALL_JOB, STEPS, ClusterRun, cluster_of, refused, share_token, start_ray
from tests.system.launching import PATIENCE_S

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]

UP = STEPS[4][0].replace("--actors 4", "--actors 1")
OLDER = """
import sys

import ray

ray.__version__ = "2.1.0"
from ray.scripts.scripts import cli

sys.argv[0] = "ray"
cli()
"""


def test_a_run_beside_another_waits_for_its_end(tmp_path: Path) -> None:
    with cluster_of(1, tmp_path) as (machine,):
        share_token(machine, [])
        start_ray(machine, STEPS[3][0], cpus=4)
        one, two = ClusterRun(machine, tmp_path, "runs/one"), ClusterRun(machine, tmp_path, "runs/two")
        one.up(UP.replace(RUN, one.path) + SMALL_JOB + ENDLESS)
        one.until(lambda: one.steps() >= 100, "the first run to be up")
        two.up(
            UP.replace(RUN, two.path).replace("6390", "6490").replace("6391", "6491")
            + SMALL_JOB
            + " --num-env-steps 800"
        )
        two.until(lambda: two.says("waiting for room", 0), "the second run to wait")
        one.goes_on(200)
        machine.run(f"launcher down {one.path}")
        assert one.process.wait(PATIENCE_S) == 0
        assert two.process.wait(300) == 0, two.text
        for run in (one, two):
            assert "sound" in machine.run(f"launcher doctor {run.path}").splitlines()[-1]


def test_a_cluster_of_another_version_of_ray_is_refused_and_one_of_our_own_is_not_disturbed_by_it(
    tmp_path: Path,
) -> None:
    with cluster_of(1, tmp_path) as (machine,):
        share_token(machine, [])
        older = tmp_path / "older.py"
        older.write_text(OLDER)
        start_ray(machine, STEPS[3][0].replace("ray start", f"{sys.executable} {older} start"))
        message = refused(machine, UP + SMALL_JOB)
        assert "2.1.0" in message
        assert ray.__version__ in message
        assert not (machine.disk / RUN).exists()
        # Without an address a run brings a Ray of its own along, whatever else is on the machine.
        own = f"launcher up --env pen --run-dir runs/own {SMALL_JOB} --num-env-steps 400"
        done = subprocess.run(machine.words(own), env=machine.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        summary = json.loads((machine.disk / "runs/own/summary.json").read_text(encoding="utf-8"))
        assert summary["env_steps"] == 400
