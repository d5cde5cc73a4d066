"""A real Prometheus that finds a run's processes through its service discovery."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replay_service.config_file import load_run_config
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from tests.ports import free_port
from tests.system.launching import Launched

REPLY_TIMEOUT_S = 30.0


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=REPLY_TIMEOUT_S) as reply:
        return json.load(reply)


def discovery_url(run: Launched) -> str:
    client = connect(RedisEndpoint.load(run.run_dir / "redis" / "connection.json"))
    run_id = load_run_config(run.run_dir / "config.toml").run_id
    address = client.hget(Keys(run_id).run, "discovery")
    client.close()
    assert address is not None
    return f"http://{address.decode()}/targets"


@contextmanager
def prometheus(folder: Path, url: str, rules: Path | None = None) -> Iterator[str]:
    """Run Prometheus with a scrape a second; yields its `host:port`."""
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{'' if rules is None else rules}]\n"
        "scrape_configs:\n"
        "  - job_name: awac\n"
        f"    http_sd_configs: [{{url: '{url}', refresh_interval: 1s}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield address
    finally:
        process.terminate()
        process.wait()


def samples(address: str, expression: str) -> list[dict[str, Any]]:
    """The vector that an expression gives now.

    Raises:
        OSError: Prometheus does not answer yet, or refuses the expression.
    """
    found = fetch(f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    result: list[dict[str, Any]] = found["data"]["result"]
    return result
