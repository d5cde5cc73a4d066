"""One run of an experiment: whether it has come to its end, whether it is still the experiment's, and its start."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import cli
from launcher.run_directory import RunDirectory
from launcher.run_settings import OF_THE_MACHINE, describe_differences, flat_settings, read_settings
from replay_service.errors import ConfigError

_POLL_S = 2.0
_MAY_DIFFER = ("num_env_steps", *OF_THE_MACHINE)


@dataclass(frozen=True, slots=True)
class ExperimentRun:
    """One seed of an experiment."""

    directory: RunDirectory
    command: tuple[str, ...]
    """The whole command line: launcher, up, and all options."""
    num_env_steps: int
    """Budget that the experiment has now; the run may have been begun with another."""

    @property
    def name(self) -> str:
        """The experiment's name and the seed."""
        return self.directory.path.name

    @property
    def output(self) -> Path:
        """What its launchers print; beside the run."""
        return self.directory.path.with_name(f"{self.name}.out")

    @property
    def is_finished(self) -> bool:
        """Whether it has come to an end, with all the steps of the experiment."""
        try:
            summary = json.loads(self.directory.summary.read_text(encoding="utf-8"))
            return bool(summary["status"] == "finished" and summary["env_steps"] >= self.num_env_steps)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def refuse_other_settings(self) -> None:
        """Refuse a run that was begun with other settings than the experiment has now, but for the budget and the
        folder of its data.

        Raises:
            ConfigError: names the first settings that differ, or the command, if that is refused as it stands.
        """
        if not self.directory.holds_run:
            return
        found = describe_differences(
            _without_folders(read_settings(self.directory.config)),
            _without_folders(resolved_settings(self.command)),
            may_differ=_MAY_DIFFER,
        )
        if found:
            raise ConfigError(
                f"{self.directory.path} was made with other settings than its experiment has now: {found}: move it "
                "aside, or choose another --runs"
            )

    def start(self) -> subprocess.Popen[bytes]:
        """Start or resume it, with all options of the experiment."""
        resume = ("--restart-behavior", "resume") if self.directory.holds_run else ()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *self.command, *resume],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip


def _without_folders(settings: dict[str, object]) -> dict[str, object]:
    """Datasets by their names alone: the folder that holds them may have moved since."""
    named = settings.get("dataset")
    sources = named if isinstance(named, list | tuple) else ()
    return {**settings, "dataset": [Path(str(source)).name for source in sources]}


def _without_run_directory(command: Sequence[str]) -> list[str]:
    """A command for any directory: in its own is a run, beside which the launcher would not begin another."""
    place = list(command).index("--run-dir")
    return [*command[:place], *command[place + 2 :]]


def resolved_settings(command: Sequence[str]) -> dict[str, object]:
    """The settings with which `launcher up ...` would begin a run, named as those of one that was begun.

    Raises:
        ConfigError: the command is refused; the launcher's own words are on stderr.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main([*_without_run_directory(command[1:]), "--dry-run"])
    if code:
        raise ConfigError(f"the launcher refuses this command (see above): {shlex.join(command)}")
    return flat_settings(tomllib.loads(printed.getvalue()))


def run_all(runs: Sequence[ExperimentRun], *, jobs: int) -> bool:
    """Run all to their ends, `jobs` at once; returns whether all came to it."""
    waiting = list(runs)
    running: list[tuple[ExperimentRun, subprocess.Popen[bytes]]] = []
    failed = False
    while waiting or running:
        while waiting and len(running) < jobs:
            run = waiting.pop(0)
            print(f"{time.strftime('%H:%M:%S')} {run.name}", flush=True)
            running.append((run, run.start()))
        for run, process in [pair for pair in running if pair[1].poll() is not None]:
            running.remove((run, process))
            if process.returncode or not run.is_finished:
                failed = True
                print(f"{run.name} did not finish; see {run.output}", flush=True)
        time.sleep(_POLL_S)
    return not failed
