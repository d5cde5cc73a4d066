"""How fast does it start and how big is an actor? Help text, first online trajectory, an actor's memory.

Runs `launcher up` for real.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from benchmarks.arguments import take_no_arguments
from benchmarks.online_run import family, online_run
from benchmarks.record import limited, report

LONGEST_HELP_S = 0.3
LONGEST_START_S = 10.0
MOST_ACTOR_MIB = 200.0


def best_help_seconds() -> float:
    """Best of five of `launcher --help`."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "launcher", "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return min(times)


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident and proportional memory of a process."""
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]:
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) / 1024
    return values["Rss"], values["Pss"]


def is_actor(pid: int) -> bool:
    """Whether a process is the pool of actors or one of them."""
    try:
        return b"\0actors\0actor\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def logged_at(log: Path, text: str) -> float:
    """Unix seconds of the first line of a log file that contains a text."""
    line = next(line for line in log.read_text(encoding="utf-8").splitlines() if text in line)
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def main() -> None:
    take_no_arguments(__doc__)
    report(limited("launcher --help", best_help_seconds(), "s", at_most=LONGEST_HELP_S))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.time()
        with online_run(
            folder, env="pen", actors=2, device="cpu", num_offline_steps=500, learner__batch_size=256,
            num_env_steps=10**9, evaluator__episodes=2,
        ) as run:  # fmt: skip
            entry = run.client.xrange(run.keys.online, count=1)[0][0]
            # The pool itself is the parent of the actors.
            _pool, *actors = sorted(pid for pid in family(run.process.pid) if is_actor(pid))
            sizes = [memory_mib(pid) for pid in actors]
            log = folder / "run" / "logs" / "learner.log"
            pretrained = logged_at(log, "offline phase done")
            filled = logged_at(log, "mirror holds")
    first = int(entry.decode().partition("-")[0]) / 1000
    report(limited(
        "launcher up until the first online trajectory but for pretraining", first - began - (pretrained - filled), "s",
        at_most=LONGEST_START_S,
        note=f"{first - pretrained:.2f} s after pretraining, which took {pretrained - filled:.1f} s",
    ))  # fmt: skip
    report(limited("resident memory of an actor", max(rss for rss, _pss in sizes), "MiB", at_most=MOST_ACTOR_MIB,
                   note=f"proportional: {max(pss for _rss, pss in sizes):.0f} MiB"))  # fmt: skip


if __name__ == "__main__":
    main()
