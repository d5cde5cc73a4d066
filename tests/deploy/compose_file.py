"""The compose file as Compose itself reads it, and its services as plain processes on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tests.deploy import images

FOLDER = images.ROOT / "deploy"
FILE = FOLDER / "compose.yaml"
# The program of the package, not its console script, which returns 0 for an invalid file.
COMPOSE = Path(str(files("compose"))) / "docker-compose"


def compose(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMPOSE, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **(environment or {})}
    )


def read(*more: Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file with everything filled in: variables, anchors, absolute paths, other files laid over it."""
    names = [word for path in (FILE, *more) for word in ("-f", str(path))]
    done = compose(*names, "--profile", "tools", "config", "--format", "json", environment=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@dataclass
class Machine:
    """Runs services: what the file calls by a container's paths, host names and ports is somewhere here.

    Attributes:
        document: what `read` returned.
        folder: for volumes, logs and environments.
        replacements: texts of commands, variables and files: host names and ports.
        sources: files that stand for those which the document mounts, by the name of the secret or config.
    """

    document: dict[str, Any]
    folder: Path
    replacements: dict[str, str]
    sources: dict[str, Path]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    metrics_ports: dict[str, str] = field(default_factory=dict)
    _pythons: dict[str, Path] = field(default_factory=dict)

    def mounts(self, service: str) -> dict[str, Path]:
        """Where the paths of a container are here."""
        found: dict[str, Path] = {}
        spec = self.document["services"][service]
        for item in spec.get("volumes", []):
            if item["type"] == "volume":
                path = self.folder / "volumes" / item["source"]
                path.mkdir(parents=True, exist_ok=True)
                found[item["target"]] = path
        for kind in ("configs", "secrets"):
            for item in spec.get(kind, []):
                found[str(Path("/run/secrets") / item["target"])] = self.sources[item["source"]]
        return found

    def here(self, service: str, text: str) -> str:
        """A command's word or a variable's value with this machine's paths, names and ports."""
        known = {path: str(real) for path, real in self.mounts(service).items()} | self.replacements
        pattern = "|".join(re.escape(name) for name in sorted(known, key=len, reverse=True))
        return re.sub(pattern, lambda found: known[found[0]], text)

    def target(self, service: str) -> str | None:
        """The stage of the Dockerfile that a service's image is made from; None for other people's images."""
        image = self.document["services"][service]["image"]
        return image.removeprefix("awac-") if image.startswith("awac-") else None

    def environment(self, service: str, name: str) -> dict[str, str]:
        spec, target = self.document["services"][service], self.target(service)
        inherited = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")}
        if target is not None:
            python = self._pythons.get(target)
            if python is None:
                python = self._pythons[target] = images.make_environment(target, self.folder / "images" / target)
            own = images.environment_of(target)
            inherited["PATH"] = f"{python.parent}:{inherited['PATH']}"
            inherited |= {key: value for key, value in own.items() if key not in ("PATH", "HOME")}
            inherited["AWAC_METRICS_PORT"] = self.metrics_ports.get(name, "")
        return inherited | {key: self.here(service, value) for key, value in spec.get("environment", {}).items()}

    def command(self, service: str) -> list[str]:
        spec, target = self.document["services"][service], self.target(service)
        entrypoint: list[str] = []
        if target is not None:
            (text,) = [value for name, value in images.stages()[target] if name == "ENTRYPOINT"]
            entrypoint = json.loads(text)
        words = [self.here(service, word) for word in [*entrypoint, *spec["command"]]]
        return words if target is not None or not words[0].startswith("--") else [service, *words]

    def start(self, service: str, name: str = "") -> subprocess.Popen[bytes]:
        name = name or service
        cwd = self.folder / "cwd" / name
        cwd.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            process = self._popen(self.command(service), service, name, cwd, log)
        self.processes[name] = process
        return process

    def run(self, service: str) -> subprocess.CompletedProcess[str]:
        """Run a service to its end, as `docker compose run` does."""
        environment = self.environment(service, service)
        return subprocess.run(
            self.command(service), env=environment, cwd=self.folder, capture_output=True, text=True, timeout=240
        )

    def is_healthy(self, service: str, name: str = "") -> bool:
        """The service's own health check, once."""
        kind, *words = self.document["services"][service]["healthcheck"]["test"]
        assert kind == "CMD"
        command = [self.here(service, word) for word in words]
        environment = self.environment(service, name or service)
        try:
            return subprocess.run(command, env=environment, capture_output=True, timeout=30).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def wait_until_healthy(self, service: str, name: str = "", timeout_s: float = 120.0) -> None:
        name = name or service
        deadline = time.monotonic() + timeout_s
        while not self.is_healthy(service, name):
            assert self.processes[name].poll() is None, f"{name} ended:\n{self.said(name)}"
            assert time.monotonic() < deadline, f"{name} did not become healthy:\n{self.said(name)}"
            time.sleep(0.5)

    def stop(self, name: str) -> int:
        """SIGTERM, and no longer than the service's own grace."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(60)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        return self.log(name).read_text(encoding="utf-8", errors="replace")[-3000:]

    def kill_all(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _popen(self, words: list[str], service: str, name: str, cwd: Path, log: Any) -> subprocess.Popen[bytes]:
        environment = self.environment(service, name)
        return subprocess.Popen(words, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
