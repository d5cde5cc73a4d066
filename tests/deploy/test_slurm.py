"""The SLURM script, run for real on this machine: only SLURM's own two commands are stood in for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy import images
from tests.system.launching import SMALL_PEN

SCRIPT = images.ROOT / "deploy" / "slurm" / "awac.sbatch"
JOB_TIMEOUT_S = 450.0

STAND_INS = {
    "scontrol": 'test "$1 $2" = "show hostnames" && printf "node-0\\nnode-1\\n"',
    # Runs the task here, as another Ray node of this machine.
    # Its options go to a file beside it.
    "srun": 'printf "%s\\n" "$*" >>"$(dirname "$0")/srun.options"\n'
    'while test "${1#--}" != "$1"; do shift 2; done\nexec "$@"',
    "launcher": f'exec "{sys.executable}" -m launcher "$@"',
}


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets are named below the folder for temporary files; their paths may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def submit(tmp_path: Path, short_folder: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs the script to its end with options; gives its exit code and what it said."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(images.ROOT),
        "AWAC_RUN": str(tmp_path / "pen-0"),
        "SLURM_JOB_NODELIST": "node-[0-1]",
        "SLURM_CPUS_PER_TASK": "4",
    }
    jobs: dict[str, subprocess.Popen[str]] = {}

    def run_job(*options: str) -> tuple[int, str]:
        job = f"{os.getpid()}{len(jobs)}"
        with (tmp_path / job).open("w+") as out:
            jobs[job] = subprocess.Popen(
                ["bash", SCRIPT, *options],
                env={**environment, "SLURM_JOB_ID": job},
                cwd=tmp_path,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            code = jobs[job].wait(JOB_TIMEOUT_S)
            out.seek(0)
            return code, out.read()

    yield run_job
    for job, process in jobs.items():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(Path("/tmp") / f"awac-{job}", ignore_errors=True)


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(2 * JOB_TIMEOUT_S + 50)
def test_a_run_on_two_ray_nodes_ends_sound_and_goes_on_with_the_options_of_the_next_job(
    submit: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, said = submit(*SMALL_PEN, "--num-env-steps", "1200")
    assert code == 0, said
    assert ended(tmp_path / "pen-0") == ("finished", 1200, 0)
    private = tmp_path / "pen-0.private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    token = private / "ray.token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() not in said
    assert (private / "redis" / "users" / "run.password").read_text() not in said
    assert "Ray runtime started" in (private / "ray-nodes.log").read_text()
    # Slurm does not hand them on by itself.
    assert "--cpus-per-task 4 " in (tmp_path / "bin" / "srun.options").read_text()

    code, said = submit(*SMALL_PEN, "--num-env-steps", "1600")
    assert code == 0, said
    assert ended(tmp_path / "pen-0") == ("finished", 1600, 0)


def ended(run: Path) -> tuple[str, int, int]:
    """Status, environment steps and unaccounted steps."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return summary["status"], summary["env_steps"], summary["unaccounted_steps"]


def test_outside_of_an_allocation_it_says_what_it_needs(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run(["bash", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "submit this script with sbatch" in done.stderr
    assert not list(tmp_path.iterdir())
