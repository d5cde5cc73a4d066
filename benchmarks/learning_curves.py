"""The runs behind docs/results.md: which they are, and all of them, or some, started or resumed.

    python -m benchmarks.learning_curves --data DATASETS --runs RUNS --only 'strong-*' --jobs 2

A run that is finished is left alone, one that was interrupted is resumed, so the command may be given again after
anything. `--list` prints the commands instead. Every run has one learner thread: on a small machine as many runs as
there are cores go on at once. `--make-data` makes the datasets that are missing: the cloned rollouts of the paper's
protocol, and demonstrations that are worse than those of the main curves.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

_POLL_S = 2.0
_COMMON = ("--actors", "1", "--learner.threads", "1")
_STD_FLOOR = ("--learner.min-log-std", "-2.5", "--learner.initial-log-std", "-2.3")
_BATCH_256 = ("--learner.batch-size", "256")

DEMONSTRATIONS = {"pen": "pen/demos-v0", "door": "door/human-v0", "relocate": "relocate/demos-v0"}
"""Demonstrations below the folder of datasets; rollouts of cloned policies are in `<env>-bc-v0` beside them."""

_EXPERTS = "relocate/expert-v0"
WORSE = {
    "relocate-slow-25": ("--noise-std", "0", "--lag", "0.9", "--episodes", "25"),
    "relocate-10": ("--noise-std", "0.1", "--episodes", "10"),
    "relocate-5": ("--noise-std", "0.1", "--episodes", "5"),
    "relocate-1": ("--noise-std", "0.1", "--episodes", "1"),
}
"""Worse demonstrations of relocate: name of the .npz -> options of `launcher dataset demos`."""

_SHIPPED = "shipped"


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
    """A dataset of its own in the place of the task's; `_SHIPPED`: name none, and get what ships with the project."""
    options: tuple[str, ...] = ()

    def command(self, seed: int, data: Path, runs: Path) -> list[str]:
        """The command line of one run."""
        shipped = self.demonstrations == _SHIPPED
        datasets = [] if shipped else [data / (self.demonstrations or DEMONSTRATIONS[self.env])]
        if self.with_rollouts:
            datasets.append(data / f"{self.env}-bc-v0")
        return [
            "launcher", "up", "--run-dir", str(runs / f"{self.name}-{seed}"), "--env", self.env,
            "--preset", self.preset, *(word for path in datasets for word in ("--dataset", str(path))),
            "--seed", str(seed), "--num-env-steps", str(self.num_env_steps), *_COMMON, *self.options,
        ]  # fmt: skip


def without(name: str, *options: str) -> Experiment:
    """`strong` on door, which behaviour cloning does not solve, with one ingredient taken away."""
    return Experiment(f"strong-without-{name}", "door", "strong", 50_000, seeds=1, options=options)


def with_one(name: str, *options: str) -> Experiment:
    """`published` on door, where it stalls, with one thing changed."""
    changed = (*_BATCH_256, *options)
    return Experiment(
        f"published-but-{name}", "door", "published", 60_000, seeds=1, with_rollouts=True, options=changed
    )


EXPERIMENTS = (
    Experiment("strong-pen", "pen", "strong", 100_000),
    Experiment("strong-door", "door", "strong", 200_000),
    Experiment("strong-relocate", "relocate", "strong", 300_000),
    Experiment("published-pen", "pen", "published", 200_000, with_rollouts=True, options=_BATCH_256),
    Experiment("published-door", "door", "published", 300_000, with_rollouts=True, options=_BATCH_256),
    Experiment("published-relocate", "relocate", "published", 300_000, seeds=1, with_rollouts=True, options=_BATCH_256),
    Experiment("published-door-without-rollouts", "door", "published", 60_000, seeds=1, options=_BATCH_256),
    Experiment("published-pen-batch-1024", "pen", "published", 100_000, seeds=1, with_rollouts=True),
    Experiment("strong-pen-with-rollouts", "pen", "strong", 100_000, seeds=1, with_rollouts=True),
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
    with_one("z", "--learner.weighting", "state_normalised"),
    with_one("value-by-sample", "--learner.value-estimate", "sample"),
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
    *(
        Experiment(f"strong-on-shipped-{env}", env, "strong", 60_000, seeds=1, demonstrations=_SHIPPED)
        for env in DEMONSTRATIONS
    ),
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


def chosen(only: list[str], data: Path, runs: Path) -> Iterator[tuple[Path, list[str]]]:
    """(run directory, command) of every run whose experiment fits one of the patterns; seed by seed."""
    picked = [e for e in EXPERIMENTS if not only or any(fnmatch(e.name, pattern) for pattern in only)]
    for seed in range(max((e.seeds for e in picked), default=0)):
        for experiment in picked:
            if seed < experiment.seeds:
                yield runs / f"{experiment.name}-{seed}", experiment.command(seed, data, runs)


def dataset_commands(data: Path) -> Iterator[tuple[Path, list[str]]]:
    """(what it makes, command) for every dataset that is made rather than brought."""
    for env, demonstrations in DEMONSTRATIONS.items():
        made = data / f"{env}-bc-v0"
        command = ["dataset", "rollout", "--env", env, "--source", str(data / demonstrations), "--output", str(made)]
        yield made, command
    for name, options in WORSE.items():
        made = data / f"{name}.npz"
        command = ["dataset", "demos", "--env", "relocate", "--source", str(data / _EXPERTS), "--output", str(made)]
        yield made, [*command, *options]


def is_finished(run: Path) -> bool:
    """Whether a run has come to the end of its budget."""
    try:
        status: object = json.loads((run / "summary.json").read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError):
        return False
    return status == "finished"


def start(run: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """Start or resume a run, with its output beside it."""
    words = ["--run-dir", str(run), "--restart-behavior", "resume"] if (run / "config.toml").exists() else command[2:]
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".out").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", "up", *words],
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of datasets")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run directories")
    parser.add_argument("--only", nargs="*", default=[], help="experiments, as in strong-* published-pen")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument(
        "--make-data", action="store_true", help="make the datasets that are missing, and start nothing"
    )
    parser.add_argument("--list", action="store_true", help="print the commands and start nothing")
    arguments = parser.parse_args()
    if arguments.make_data:
        for made, command in dataset_commands(arguments.data.resolve()):
            if not made.exists():
                print(shlex.join(["launcher", *command]), flush=True)
                subprocess.run([sys.executable, "-m", "launcher", *command], check=True)
        return 0
    todo = list(chosen(arguments.only, arguments.data.resolve(), arguments.runs.resolve()))
    if arguments.list:
        for _run, command in todo:
            print(shlex.join(command))
        return 0
    waiting = [(run, command) for run, command in todo if not is_finished(run)]
    running: dict[Path, subprocess.Popen[bytes]] = {}
    failed: list[Path] = []
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            run, command = waiting.pop(0)
            print(f"{time.strftime('%H:%M:%S')} {run.name}", flush=True)
            running[run] = start(run, command)
        for run in [run for run, process in running.items() if process.poll() is not None]:
            if running.pop(run).returncode or not is_finished(run):
                failed.append(run)
                print(f"{run.name} did not finish; see {run.with_suffix('.out')}", flush=True)
        time.sleep(_POLL_S)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
