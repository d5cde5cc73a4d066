"""How fast does it start and how big is it? Help text, first online trajectory, an actor's memory, 32 actors.

Runs `launcher up` for real; the machine should be otherwise idle.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from benchmarks.record import Measurement, report
from replay_service.config_file import load_run_config
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys

SMALL = (
    "--env", "pen", "--num-offline-steps", "500", "--learner.batch-size", "256", "--evaluator.episodes", "5",
    "--device", "cpu",
)  # fmt: skip


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


def children_named(text: str) -> list[int]:
    """Processes whose command line contains a text, oldest first."""
    found = subprocess.run(["pgrep", "-f", text], capture_output=True, text=True, check=False)
    return sorted(int(pid) for pid in found.stdout.split())


def first_trajectory_delay_s(run_dir: Path) -> float:
    """Seconds from the end of pretraining (learner's log) to the first entry of the online stream."""
    log = (run_dir / "logs" / "learner.log").read_text(encoding="utf-8")
    line = next(line for line in log.splitlines() if "offline phase done" in line)
    handed_over = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    client = connect(RedisEndpoint.load(run_dir / "redis" / "connection.json"))
    keys = Keys(load_run_config(run_dir / "config.toml").run_id)
    first = client.xrange(keys.online, count=1)[0][0]
    client.close()
    return int(first.decode().partition("-")[0]) / 1000 - handed_over


def run(actors: int, env_steps: int, folder: Path) -> dict[str, float]:
    """One `launcher up`; sizes are taken while it is online."""
    run_dir = folder / f"actors-{actors}"
    options = ["--actors", str(actors), "--num-env-steps", str(env_steps), "--run-dir", str(run_dir)]
    began = time.perf_counter()
    found: dict[str, float] = {}
    with subprocess.Popen(
        [sys.executable, "-m", "launcher", "up", *SMALL, *options], stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            time.sleep(0.5)
            log = run_dir / "logs" / "learner.log"
            if found or not log.exists() or "offline phase done" not in log.read_text(encoding="utf-8"):
                continue
            time.sleep(3.0)
            workers = children_named(f"actors actor --config {run_dir.resolve()}")[1:]
            sizes = [memory_mib(pid) for pid in workers]
            found = {
                "actors": len(workers),
                "rss_mib": max(rss for rss, _pss in sizes),
                "pss_mib": max(pss for _rss, pss in sizes),
                "first_trajectory_s": first_trajectory_delay_s(run_dir),
            }
    return {**found, "exit_code": float(process.returncode), "seconds": time.perf_counter() - began}


def main() -> None:
    help_s = best_help_seconds()
    report(Measurement(name="launcher --help", value=round(help_s, 3), unit="s", target=0.5, met=help_s <= 0.5))
    with tempfile.TemporaryDirectory() as folder:
        small = run(2, 3_000, Path(folder))
        first, rss = small["first_trajectory_s"], small["rss_mib"]
        report(Measurement(name="first online trajectory after pretraining", value=round(first, 2), unit="s",
                           target=20.0, met=first <= 20.0))  # fmt: skip
        report(Measurement(name="resident memory of an actor, largest of 2", value=round(rss), unit="MiB",
                           target=200.0, met=rss <= 200.0))  # fmt: skip
        report(Measurement(name="proportional memory of an actor", value=round(small["pss_mib"]), unit="MiB"))
        many = run(32, 12_800, Path(folder))
        report(Measurement(name="first online trajectory, 32 actors", value=round(many["first_trajectory_s"], 2),
                           unit="s", target=20.0, met=many["first_trajectory_s"] <= 20.0))  # fmt: skip
        report(Measurement(name="actors alive of 32", value=many["actors"], unit="", target=32.0,
                           met=many["actors"] == 32.0))  # fmt: skip
        report(Measurement(name="launcher up --actors 32, 12,800 env steps", value=round(many["seconds"], 1), unit="s"))
        report(Measurement(name="its exit code", value=many["exit_code"], unit="", target=0.0,
                           met=many["exit_code"] == 0.0))  # fmt: skip


if __name__ == "__main__":
    main()
