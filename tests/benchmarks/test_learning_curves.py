"""The runs behind docs/results.md: which are finished, what is gone on with, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.experiment_run import ExperimentRun
from benchmarks.learning_curves import (
    DATA,
    DEMONSTRATIONS,
    EXPERIMENTS,
    Experiment,
    chosen,
    missing_datasets,
    require_datasets,
)
from launcher.run_settings import read_settings
from replay_service.datasets import read_npz_metadata
from replay_service.errors import ConfigError
from tests.system.launching import SMALL_PEN

ROOT = Path(__file__).parents[2]
SHIPPED_PEN = next(e for e in EXPERIMENTS if e.name == "strong-on-shipped-pen")
"""An experiment that needs no data beside the project."""


def benchmark(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks.learning_curves` on the run directories in a folder."""
    command = [sys.executable, "-m", "benchmarks.learning_curves", "--data", str(folder / "data")]
    command += ["--runs", str(folder / "runs")]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)


def make_run(run: ExperimentRun, *more: str, **summary: object) -> None:
    """A run directory as its launcher leaves it: the real configuration of the command, and a summary."""
    run.directory.path.mkdir(parents=True)
    command = [sys.executable, "-m", *run.command, *more, "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run.directory.config.write_text(done.stdout, encoding="utf-8")
    run.directory.summary.write_text(json.dumps(summary), encoding="utf-8")


def run_of(experiment: Experiment, folder: Path) -> ExperimentRun:
    return experiment.run(0, folder / "data", folder / "runs")


@pytest.mark.parametrize(
    ("summary", "budget", "finished"),
    [
        ({"status": "finished", "env_steps": 60_000}, 60_000, True),
        ({"status": "finished", "env_steps": 60_000}, 60_001, False),
        ({"status": "stopped", "env_steps": 60_000}, 60_000, False),
        ({"status": "finished", "env_steps": 0}, 0, True),
        ({"status": "finished"}, 0, False),
        ([], 0, False),
    ],
)
def test_a_run_is_finished_when_it_has_the_steps_of_its_experiment(
    summary: object, budget: int, finished: bool, tmp_path: Path
) -> None:
    run = run_of(replace(SHIPPED_PEN, num_env_steps=budget), tmp_path)
    assert not run.is_finished
    run.directory.path.mkdir(parents=True)
    run.directory.summary.write_text(json.dumps(summary), encoding="utf-8")
    assert run.is_finished is finished


def test_a_finished_run_with_the_settings_of_its_experiment_is_left_alone(tmp_path: Path) -> None:
    run = run_of(SHIPPED_PEN, tmp_path)
    # What may be otherwise: another machine's Redis, and more steps than the experiment asks for.
    elsewhere = ("--replay.port", "6390", "--learner.checkpoint-every-s", "5")
    make_run(run, *elsewhere, status="finished", env_steps=SHIPPED_PEN.num_env_steps)
    text = run.directory.config.read_text(encoding="utf-8")
    run.directory.config.write_text(text.replace("num_env_steps = 60000", "num_env_steps = 70000"), encoding="utf-8")
    done = benchmark(tmp_path, "--only", SHIPPED_PEN.name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not run.output.exists()


def test_the_folder_of_the_data_may_move_and_the_data_may_not_change(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = tmp_path / "data" / DEMONSTRATIONS["pen"]
    shutil.copy(DATA / source.name, source)
    run = run_of(next(e for e in EXPERIMENTS if e.name == "strong-pen"), tmp_path)
    make_run(run, status="finished", env_steps=100_000)
    text = run.directory.config.read_text(encoding="utf-8")
    assert str(source) in text
    run.directory.config.write_text(text.replace(str(source), f"/elsewhere/{source.name}"), encoding="utf-8")
    run.refuse_other_settings()
    run.directory.config.write_text(text.replace(str(source), "/elsewhere/other.npz"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"made with other settings .*: dataset"):
        run.refuse_other_settings()


@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_a_run_that_was_made_with_other_settings_is_refused(status: str, tmp_path: Path) -> None:
    run = run_of(SHIPPED_PEN, tmp_path)
    make_run(run, "--learner.temperature", "2", "--evaluator.episodes", "5", status=status, env_steps=60_000)
    done = benchmark(tmp_path, "--only", SHIPPED_PEN.name)
    assert done.returncode == 2
    assert f"{run.directory.path} was made with other settings" in done.stderr
    assert "learner.temperature (2.0 and 0.5), evaluator.episodes (5 and 50)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.output.exists()


@pytest.mark.parametrize("option", ["--list", "--make-data", "--jobs=1"])
def test_a_pattern_that_fits_no_experiment_is_refused(option: str, tmp_path: Path) -> None:
    done = benchmark(tmp_path, option, "--only", "strong-pen", "stron-door")
    assert (done.returncode, done.stdout) == (2, "")
    assert "got 'stron-door'. Did you mean 'strong-door'?" in done.stderr


def test_the_listed_commands_are_those_of_the_chosen_seeds(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--list", "--only", "strong-relocate", "behaviour-cloning-pen")
    assert done.returncode == 0
    names = [run.name for run in chosen(["strong-relocate", "behaviour-cloning-pen"], tmp_path, tmp_path)]
    assert names == [
        "strong-relocate-0", "behaviour-cloning-pen-0", "strong-relocate-1", "behaviour-cloning-pen-1",
        "strong-relocate-2", "behaviour-cloning-pen-2", "strong-relocate-3", "strong-relocate-4", "strong-relocate-5",
    ]  # fmt: skip
    assert [line.split()[3].rpartition("/")[2] for line in done.stdout.splitlines()] == names


def small(num_env_steps: int, options: Sequence[str] = ()) -> Experiment:
    """An experiment of a few seconds."""
    words = dict(zip(SMALL_PEN[::2], SMALL_PEN[1::2], strict=True))
    for taken in ("--env", "--actors", "--learner.threads"):
        del words[taken]
    kept = tuple(word for pair in words.items() for word in pair)
    return Experiment("small", "pen", "strong", num_env_steps, demonstrations="shipped", options=(*kept, *options))


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_experiment_with_more_steps_goes_on_with_the_run(tmp_path: Path) -> None:
    run = run_of(small(600), tmp_path)
    assert run.start().wait(180) == 0, run.output.read_text()
    run.refuse_other_settings()
    assert run.is_finished
    longer = run_of(small(1000, ["--learner.report-every-s", "1"]), tmp_path)
    assert not longer.is_finished
    longer.refuse_other_settings()
    assert longer.start().wait(180) == 0, longer.output.read_text()
    assert run_of(small(1000), tmp_path).is_finished
    assert read_settings(longer.directory.config)["learner.report_every_s"] == 1.0


class TestMissingDatasets:
    def test_only_what_the_chosen_runs_need_is_made(self, tmp_path: Path) -> None:
        (tmp_path / "door-v0_demos.pickle").touch()
        needed = missing_datasets(chosen(["published-door", "strong-pen"], tmp_path, tmp_path / "runs"), tmp_path)
        assert [made.path for made in needed] == [tmp_path / "door-bc-v0"]
        (tmp_path / "door-bc-v0").mkdir()
        assert missing_datasets(chosen(["published-door"], tmp_path, tmp_path / "runs"), tmp_path) == []

    def test_a_source_that_is_not_there_is_named_before_anything_is_made(self, tmp_path: Path) -> None:
        (tmp_path / "door-v0_demos.pickle").touch()
        runs = chosen(["published-*"], tmp_path, tmp_path / "runs")
        with pytest.raises(ConfigError, match=r"pen-bc-v0 is made of .*pen-demos-v0.npz, which is not there.*--only"):
            missing_datasets(runs, tmp_path)


def test_a_dataset_that_is_not_there_is_named_before_anything_is_started(tmp_path: Path) -> None:
    for name, cure in (("strong-door", "README.md says where it is from"), ("published-pen", "with --make-data")):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / DEMONSTRATIONS["pen"]).touch()
        done = benchmark(tmp_path, "--only", name)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"--data: {name}-0 needs {tmp_path / 'data'}" in done.stderr
        assert cure in done.stderr
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("env", ["pen", "relocate"])
def test_the_demonstrations_that_are_kept_here_are_whole(env: str) -> None:
    path = DATA / DEMONSTRATIONS[env]
    facts = subprocess.run(
        [sys.executable, "-m", "launcher", "dataset", "inspect", path], capture_output=True, text=True
    )
    assert facts.returncode == 0, facts.stderr
    assert read_npz_metadata(path)["fingerprint"] in facts.stdout


def test_a_run_that_begins_with_an_empty_buffer_needs_no_data(tmp_path: Path) -> None:
    (run,) = chosen(["published-pen-from-scratch"], tmp_path, tmp_path)
    assert run.command[run.command.index("--dataset") + 1] == "none"
    assert missing_datasets([run], tmp_path) == []
    require_datasets([run], tmp_path)
