"""The runs behind docs/results.md: which they are, and all of them, or some, started or resumed.

    python -m benchmarks.learning_curves --runs RUNS --only 'strong-*' --jobs 2

The demonstrations of pen and relocate are in benchmarks/demonstrations; its README says where door's come from. A run
that has all the steps of its experiment is left alone; one that was interrupted, or began with fewer steps, is resumed:
the command may be given again after anything. A run that was made with other settings than its experiment has now is
refused before anything starts. `--list` prints the commands instead. Every run has one learner thread: on a
small machine as many runs as there are cores go on at once. `--make-data` makes the datasets that the chosen runs need
and that are missing: the cloned rollouts of the paper's protocol, and demonstrations that are worse than those of the
main curves.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

from benchmarks.experiment_run import ExperimentRun, run_all
from launcher.run_directory import RunDirectory
from replay_service.config_file import nearest
from replay_service.errors import USER_ERROR_EXIT_CODE, ConfigError, UserError

_ONE_THREAD = ("--learner.threads", "1")
_STD_FLOOR = ("--learner.min-log-std", "-2.5", "--learner.initial-log-std", "-2.3")
_BATCH_256 = ("--learner.batch-size", "256")

DATA = Path(__file__).parent / "demonstrations"
DEMONSTRATIONS = {"pen": "pen-demos-v0.npz", "door": "door-v0_demos.pickle", "relocate": "relocate-demos-v0.npz"}
"""Demonstrations in the folder of datasets; rollouts of cloned policies are in `<env>-bc-v0` beside them."""

_EXPERTS = "relocate-expert-v0"
WORSE = {
    "relocate-slow-25": ("--noise-std", "0", "--lag", "0.9", "--episodes", "25"),
    "relocate-10": ("--noise-std", "0.1", "--episodes", "10"),
    "relocate-5": ("--noise-std", "0.1", "--episodes", "5"),
    "relocate-1": ("--noise-std", "0.1", "--episodes", "1"),
}
"""Worse demonstrations of relocate: name of the .npz -> options of `launcher dataset demos`."""

_SHIPPED = "shipped"
_NO_DATA = "none"


@dataclass(frozen=True)
class Experiment:
    """One curve: the same settings on several seeds."""

    name: str
    env: str
    preset: str
    num_env_steps: int
    seeds: int = 3
    with_rollouts: bool = False
    """Whether 100,000 transitions of cloned policies come with the demonstrations, as in the paper."""
    demonstrations: str = ""
    """A dataset of its own in the place of the task's; `_SHIPPED`: name none, and get what ships with the project;
    `_NO_DATA`: begin with an empty buffer."""
    options: tuple[str, ...] = ()
    actors: int = 1

    def run(self, seed: int, data: Path, runs: Path) -> ExperimentRun:
        """One of its runs."""
        shipped = self.demonstrations == _SHIPPED
        datasets = [] if shipped else [str(data / (self.demonstrations or DEMONSTRATIONS[self.env]))]
        if self.demonstrations == _NO_DATA:
            datasets = [_NO_DATA]
        if self.with_rollouts:
            datasets.append(str(data / f"{self.env}-bc-v0"))
        directory = RunDirectory(runs / f"{self.name}-{seed}")
        command = (
            "launcher", "up", "--run-dir", str(directory.path), "--env", self.env,
            "--preset", self.preset, *(word for path in datasets for word in ("--dataset", path)),
            "--seed", str(seed), "--num-env-steps", str(self.num_env_steps), "--actors", str(self.actors),
            *_ONE_THREAD, *self.options,
        )  # fmt: skip
        return ExperimentRun(directory, command, self.num_env_steps)


def without(name: str, *options: str) -> Experiment:
    """`strong` on door, which behaviour cloning does not solve, with one ingredient taken away."""
    return Experiment(f"strong-without-{name}", "door", "strong", 50_000, seeds=1, options=options)


def with_one(name: str, *options: str) -> Experiment:
    """`published` on door, where it stalls, with one thing changed."""
    changed = (*_BATCH_256, *options)
    return Experiment(
        f"published-but-{name}", "door", "published", 60_000, seeds=1, with_rollouts=True, options=changed
    )


def ablation(name: str, *options: str) -> Experiment:
    """`published` on pen, which it learns, with the paper's question asked of it."""
    asked = (*_BATCH_256, *options)
    return Experiment(f"published-pen-{name}", "pen", "published", 100_000, seeds=1, with_rollouts=True, options=asked)


EXPERIMENTS = (
    Experiment("strong-pen", "pen", "strong", 100_000),
    Experiment("strong-door", "door", "strong", 200_000),
    Experiment("strong-relocate", "relocate", "strong", 300_000, seeds=6),
    Experiment("published-pen", "pen", "published", 200_000, with_rollouts=True, options=_BATCH_256),
    Experiment("published-door", "door", "published", 300_000, with_rollouts=True, options=_BATCH_256),
    Experiment("published-relocate", "relocate", "published", 300_000, seeds=1, with_rollouts=True, options=_BATCH_256),
    Experiment("published-door-without-rollouts", "door", "published", 60_000, seeds=1, options=_BATCH_256),
    Experiment("published-door-batch-1024", "door", "published", 100_000, seeds=2, with_rollouts=True),
    Experiment("published-pen-batch-1024", "pen", "published", 100_000, seeds=1, with_rollouts=True),
    Experiment("published-relocate-batch-1024", "relocate", "published", 100_000, seeds=1, with_rollouts=True),
    Experiment("strong-pen-but-temperature", "pen", "strong", 100_000, seeds=1,
               options=("--learner.temperature", "1")),
    Experiment("strong-pen-with-rollouts", "pen", "strong", 100_000, seeds=1, with_rollouts=True),
    Experiment("strong-door-8-actors", "door", "strong", 100_000, seeds=1, actors=8),
    Experiment("strong-door-32-actors", "door", "strong", 100_000, seeds=1, actors=32),
    Experiment("strong-door-with-rollouts", "door", "strong", 100_000, seeds=1, with_rollouts=True),
    without("acting-average", "--learner.policy-average-rate", "1"),
    without("evaluated-average", "--learner.evaluated-average-rate", "none"),
    without("layer-norm", "--learner.no-critic-layer-norm"),
    without("n-step", "--learner.n-step", "1"),
    without("sharp-weights", "--learner.weighting", "batch_softmax", "--learner.advantage-clip", "0.5"),
    without("offline-fraction", "--learner.offline-fraction", "none"),
    without("target-bounds", "--learner.min-target", "none", "--learner.max-target", "none"),
    without("half-of-the-updates", "--utd-ratio", "0.5"),
    without("four-critics", "--learner.num-critics", "2"),
    without("advantage-of-each-critic", "--learner.advantage-critics", "min"),
    ablation("normaliser", "--learner.weighting", "state_normalised"),
    ablation("sample-value", "--learner.value-estimate", "sample"),
    Experiment("published-pen-from-scratch", "pen", "published", 100_000, seeds=1, demonstrations=_NO_DATA,
               options=(*_BATCH_256, "--num-offline-steps", "0")),
    with_one("z", "--learner.weighting", "state_normalised"),
    with_one("value-by-sample", "--learner.value-estimate", "sample"),
    with_one("short-offline-phase", "--num-offline-steps", "5000"),
    with_one("average", "--learner.policy-average-rate", "0.001"),
    with_one("layer-norm", "--learner.critic-layer-norm"),
    with_one("n-step", "--learner.n-step", "3"),
    with_one("offline-fraction", "--learner.offline-fraction", "0.5"),
    with_one("sharp-weights", "--learner.weighting", "exponential", "--learner.advantage-clip", "none",
             "--learner.max-weight", "20", "--learner.normalise-weights"),
    *(
        Experiment(f"strong-on-{name}", "relocate", "strong", 60_000, seeds=1, demonstrations=f"{name}.npz")
        for name in WORSE
    ),
    Experiment("strong-on-shipped-pen", "pen", "strong", 60_000, seeds=1, demonstrations=_SHIPPED),
    Experiment("strong-on-shipped-door", "door", "strong", 60_000, seeds=1, demonstrations=_SHIPPED),
    Experiment("strong-on-shipped-relocate", "relocate", "strong", 120_000, seeds=1, demonstrations=_SHIPPED),
    Experiment("strong-on-shipped-relocate-but-uniform", "relocate", "strong", 120_000, seeds=1,
               demonstrations=_SHIPPED, options=("--learner.offline-fraction", "none")),
    Experiment("strong-on-shipped-relocate-but-temperature", "relocate", "strong", 60_000, seeds=1,
               demonstrations=_SHIPPED, options=("--learner.temperature", "2")),
    Experiment("strong-on-shipped-relocate-but-std-floor", "relocate", "strong", 60_000, seeds=1,
               demonstrations=_SHIPPED, options=_STD_FLOOR),
    Experiment("strong-on-relocate-slow-25-but-std-floor", "relocate", "strong", 60_000, seeds=1,
               demonstrations="relocate-slow-25.npz", options=_STD_FLOOR),
    Experiment("behaviour-cloning-pen", "pen", "behaviour-cloning", 0),
    Experiment("behaviour-cloning-door", "door", "behaviour-cloning", 0),
    Experiment("behaviour-cloning-relocate", "relocate", "behaviour-cloning", 0),
)  # fmt: skip


def chosen(only: Sequence[str], data: Path, runs: Path) -> list[ExperimentRun]:
    """Every run whose experiment fits one of the patterns, or all of them; seed by seed.

    Raises:
        ConfigError: a pattern fits no experiment.
    """
    for pattern in only:
        if not any(fnmatch(e.name, pattern) for e in EXPERIMENTS):
            hint = nearest(pattern, [e.name for e in EXPERIMENTS])
            raise ConfigError(f"--only: expected a pattern that fits a name in --list, got {pattern!r}.{hint}")
    picked = [e for e in EXPERIMENTS if not only or any(fnmatch(e.name, pattern) for pattern in only)]
    seeds = range(max(e.seeds for e in picked))
    return [e.run(seed, data, runs) for seed in seeds for e in picked if seed < e.seeds]


@dataclass(frozen=True)
class MadeDataset:
    """A dataset that is made of another one rather than brought."""

    path: Path
    source: Path
    command: tuple[str, ...]
    """The launcher's words that make it."""


def made_datasets(data: Path) -> Iterator[MadeDataset]:
    """Every dataset below the folder that is made."""
    for env, demonstrations in DEMONSTRATIONS.items():
        path, source = data / f"{env}-bc-v0", data / demonstrations
        words = ("dataset", "rollout", "--env", env, "--source", str(source), "--output", str(path))
        yield MadeDataset(path, source, words)
    for name, options in WORSE.items():
        path, source = data / f"{name}.npz", data / _EXPERTS
        made = ("dataset", "demos", "--env", "relocate", "--source", str(source), "--output", str(path), *options)
        yield MadeDataset(path, source, made)


def missing_datasets(runs: Sequence[ExperimentRun], data: Path) -> list[MadeDataset]:
    """Those that some of the runs need, and that are not there yet.

    Raises:
        ConfigError: what one of them is made of is not there either.
    """
    needed = {word for run in runs for word in run.command}
    missing = [made for made in made_datasets(data) if str(made.path) in needed and not made.path.exists()]
    for made in missing:
        if not made.source.exists():
            raise ConfigError(
                f"--data: {made.path.name} is made of {made.source}, which is not there; put it there, or name the "
                "runs that do without it with --only"
            )
    return missing


def require_datasets(runs: Sequence[ExperimentRun], data: Path) -> None:
    """Raise what is missing at once, not hours later, when the turn of its run has come.

    Raises:
        ConfigError: a dataset that one of the runs names is not there.
    """
    makeable = {made.path for made in made_datasets(data)}
    for run in runs:
        named = (Path(value) for word, value in pairwise(run.command) if word == "--dataset")
        for path in named:
            if str(path) != _NO_DATA and not path.exists():
                cure = "make it with --make-data" if path in makeable else f"{DATA / 'README.md'} says where it is from"
                raise ConfigError(f"--data: {run.name} needs {path}, which is not there; {cure}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of datasets (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run directories")
    parser.add_argument("--only", nargs="*", default=[], help="experiments, as in strong-* published-pen")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument(
        "--make-data",
        action="store_true",
        help="make the datasets that the runs need and that are missing, and start nothing",
    )
    parser.add_argument("--list", action="store_true", help="print the commands and start nothing")
    arguments = parser.parse_args()
    try:
        runs = chosen(arguments.only, arguments.data.resolve(), arguments.runs.resolve())
        if arguments.make_data:
            for made in missing_datasets(runs, arguments.data.resolve()):
                print(shlex.join(["launcher", *made.command]), flush=True)
                subprocess.run([sys.executable, "-m", "launcher", *made.command], check=True)
            return 0
        if arguments.list:
            for run in runs:
                print(shlex.join(run.command))
            return 0
        for run in runs:
            run.refuse_other_settings()
        require_datasets([run for run in runs if not run.is_finished], arguments.data.resolve())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    return 0 if run_all([run for run in runs if not run.is_finished], jobs=arguments.jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
