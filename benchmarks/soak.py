"""Does anything grow? A run at full rate whose actors are killed and come back; its memory and descriptors are watched.

`python -m benchmarks.soak --minutes 30`. The replay buffer is small and evaluations are many, so that both what is
retained and the policies that are kept for films reach their number in the first half; then a line is fitted to the
second half of the samples of each role. Flat means that the line rises by less than a share of the mean over that
time. Short soaks only show that the soak itself works.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.online_run import stop
from benchmarks.record import Measurement, report
from launcher.run_directory import RunDirectory
from replay_service.config_file import load_run_config
from replay_service.connection import TRANSIENT_ERRORS, RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.run_state import Phase, RunStateStore

_CAPACITY = 5_000
_SAMPLE_PERIOD_S = 2.0
_START_TIMEOUT_S = 300.0
_FLAT_SHARE = 0.05
"""A series is flat when its fitted line rises by less than this share of its mean."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """One quantity of one role at one moment."""

    seconds: float
    """Since the soak began."""
    name: str
    """'learner RSS', 'actor descriptors', 'Redis memory', ..."""
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through the second half of a series."""

    mean: float
    slope_per_hour: float
    rise: float
    """Of the line, from the first to the last sample that was used."""

    @property
    def flat(self) -> bool:
        """Whether the line rises by less than a share of the mean; that it falls is no harm."""
        return self.rise <= _FLAT_SHARE * self.mean


def trend(times_s: list[float], values: list[float]) -> Trend | None:
    """Fit a line to the later half of the time; None with fewer than four samples there."""
    times, series = np.array(times_s), np.array(values)
    if len(times) == 0:
        return None
    late = times >= (times[0] + times[-1]) / 2
    times, series = times[late], series[late]
    if len(times) < 4 or times[-1] <= times[0]:
        return None
    slope = float(np.polyfit(times - times[0], series, 1)[0])
    return Trend(float(series.mean()), slope * 3600.0, slope * float(times[-1] - times[0]))


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def descriptors(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def take_samples(store: RunStateStore, client: RedisClient, launcher_pid: int, seconds: float) -> list[Sample]:
    """Memory and descriptors of every role, means over a role's processes, and Redis's own count of its memory."""
    pids: dict[str, list[int]] = defaultdict(list, {"launcher": [launcher_pid]})
    for name, process in store.processes().items():
        if process.is_here and process.is_alive:
            pids[name.partition("-")[0]].append(process.pid)
    found = [Sample(seconds, "Redis memory", client.info("memory")["used_memory"] / _MIB, "MiB")]
    for role, members in sorted(pids.items()):
        sizes, handles = [], []
        for pid in members:
            try:
                size, handle = rss_mib(pid), descriptors(pid)
            except OSError:
                continue  # it was killed in between
            sizes.append(size)
            handles.append(handle)
        if sizes:
            found.append(Sample(seconds, f"{role} RSS", float(np.mean(sizes)), "MiB"))
            found.append(Sample(seconds, f"{role} descriptors", float(np.mean(handles)), ""))
    return found


def start_run(run_dir: Path, actors: int, kills: int) -> subprocess.Popen[bytes]:
    """`launcher up` without an end, at full rate, with a small buffer."""
    options = {
        "env": "pen", "actors": actors, "device": "cpu", "num-offline-steps": 200, "initial-env-steps": 400,
        "num-env-steps": 10**9, "replay.capacity": _CAPACITY, "learner.batch-size": 256, "utd-ratio": 0.25,
        "evaluator.episodes": 1, "learner.evaluate-every-env-steps": 1500,
        "learner.checkpoint-every-s": 20, "actor.max-restarts": kills + 10,
        "launcher.max-restarts": kills + 10, "run-dir": run_dir,
    }  # fmt: skip
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    output = run_dir.with_suffix(".out").open("wb")
    with output:
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", "up", *arguments], stdout=output, stderr=subprocess.STDOUT
        )


def wait_until_online(run: RunDirectory, process: subprocess.Popen[bytes]) -> tuple[RedisClient, Keys]:
    """Wait for the first online steps.

    Raises:
        RuntimeError: the run ended, or took too long.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.5)
        if not run.ready.exists():
            continue
        client = connect(RedisEndpoint.load(run.connection), reply_timeout_s=5.0)
        keys = Keys(load_run_config(run.config).run_id)
        try:
            state = RunStateStore(client, keys).read()
            if state.phase is Phase.ONLINE and state.env_steps > 0:
                return client, keys
        except TRANSIENT_ERRORS:
            pass
        client.close()
    raise RuntimeError(f"the run was not online in {_START_TIMEOUT_S:.0f} s; its output: {run.path}.out")


def soak(run: RunDirectory, process: subprocess.Popen[bytes], seconds: float, kill_every_s: float) -> list[Sample]:
    """Sample for a while, and let an actor be killed now and then."""
    client, keys = wait_until_online(run, process)
    store = RunStateStore(client, keys)
    began = time.monotonic()
    drills: list[subprocess.Popen[str]] = []
    samples: list[Sample] = []
    try:
        while (now := time.monotonic() - began) < seconds and process.poll() is None:
            samples += take_samples(store, client, process.pid, now)
            if now >= (len(drills) + 1) * kill_every_s and (not drills or drills[-1].poll() is not None):
                command = [sys.executable, "-m", "launcher", "chaos", str(run.path), "--kill", "actor", "--json"]
                drills.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            time.sleep(_SAMPLE_PERIOD_S)
        alive = process.poll() is None
        outcomes = [(drill.communicate(timeout=300)[0], drill.returncode) for drill in drills]
        state = store.read()
    finally:
        for drill in drills:
            if drill.poll() is None:
                drill.kill()
        client.close()
    back = [json.loads(text)["back_after_s"] for text, code in outcomes if code == 0]
    report(Measurement(name="soak: the run is up at its end", value=float(alive), unit="", target=1.0, met=alive))
    report(Measurement(name="soak: env steps", value=state.env_steps, unit=""))
    report(Measurement(name="soak: actors killed", value=len(drills), unit=""))
    report(Measurement(name="soak: drills passed", value=len(back), unit="", target=len(drills),
                       met=len(back) == len(drills)))  # fmt: skip
    if back:
        report(Measurement(name="soak: an actor works again, longest", value=round(max(back), 2), unit="s"))
    return samples


def report_trends(samples: list[Sample]) -> None:
    """A line a series."""
    series: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        series[sample.name, sample.unit].append(sample)
    for (name, unit), found in sorted(series.items()):
        line = trend([s.seconds for s in found], [s.value for s in found])
        if line is None:
            continue
        report(Measurement(
            name=f"soak: {name}, rise over the second half", value=round(line.rise, 2), unit=unit,
            against=f"a mean of {line.mean:.1f} {unit}".strip() + f", {line.slope_per_hour:+.1f} an hour",
            target=round(_FLAT_SHARE * line.mean, 2), met=line.flat,
        ))  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="length, from the first online step")
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--kill-every", type=float, default=30.0, metavar="S", help="seconds between two kills")
    parser.add_argument("--output", type=Path, help="every sample, as CSV")
    arguments = parser.parse_args()
    seconds = 60.0 * arguments.minutes
    if seconds <= 0 or arguments.kill_every <= 0 or arguments.actors < 1:
        parser.error("--minutes and --kill-every must be above 0, --actors at least 1")
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder).resolve() / "soak")
        process = start_run(run.path, arguments.actors, int(seconds / arguments.kill_every) + 1)
        try:
            samples = soak(run, process, seconds, arguments.kill_every)
        finally:
            stop(process)
        summary = json.loads(run.summary.read_text(encoding="utf-8"))
    unaccounted = summary["unaccounted_steps"]
    report(Measurement(name="soak: steps unaccounted for", value=unaccounted, unit="", target=0, met=unaccounted == 0))
    report_trends(samples)
    if arguments.output is not None:
        with arguments.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["seconds", "name", "value", "unit"])
            writer.writerows((f"{s.seconds:.1f}", s.name, f"{s.value:.3f}", s.unit) for s in samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
