"""docs/cluster.md, "Encryption": Redis and Ray over TLS between two machines, and what is refused without."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.certificates import OPENSSL, Authority
from tests.system.cluster import PAGE, SMALL_JOB, STEPS, ClusterRun, cluster_of, join, share_token, start_ray
from tests.system.launching import wait_until
from tests.system.machines import Machine

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")
PASSWORD = "of-this-test"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    if OPENSSL is None:
        pytest.skip("no openssl to make certificates with")
    if SERVER is None:
        pytest.skip("no valkey-server or redis-server on the PATH; the packaged one has no TLS")
    return Authority(tmp_path / "certificates")


@pytest.fixture
def cluster(authority: Authority, tmp_path: Path) -> Iterator[list[Machine]]:
    certificate, key = authority.issue("machines", "IP:10.0.0.1,IP:10.0.0.2,IP:127.0.0.1,DNS:localhost")
    names = re.findall(r"`(RAY_TLS_\w+)`", PAGE.read_text(encoding="utf-8"))
    files = {"RAY_TLS_SERVER_CERT": certificate, "RAY_TLS_SERVER_KEY": key, "RAY_TLS_CA_CERT": authority.certificate}
    assert sorted(names) == sorted(files)  # what the page names is what this test sets
    environment = {"RAY_USE_TLS": "1", **{name: str(path) for name, path in files.items()}}
    with cluster_of(2, tmp_path, environment) as made:
        yield made


@contextmanager
def redis_behind_tls(machine: Machine, authority: Authority, tmp_path: Path) -> Iterator[None]:
    """A Redis that speaks TLS alone, with the one user of docs/security.md."""
    certificate, key = authority.issue("redis", "IP:10.0.0.1")
    page = (PAGE.parent / "security.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ {4}(user awac .*)$", page, flags=re.MULTILINE)
    users = tmp_path / "users.acl"
    users.write_text(f"user default off\n{line.replace('>PASSWORD', f'>{PASSWORD}')}\n")
    process = machine.start(
        f"{SERVER} --port 0 --tls-port 6390 --bind 10.0.0.1 --tls-cert-file {certificate} --tls-key-file {key} "
        f"--tls-ca-cert-file {authority.certificate} --tls-auth-clients no --aclfile {users} --save '' "
        f"--dir {tmp_path}",
        tmp_path / "redis.out",
    )
    try:
        yield
    finally:
        for found in machine.processes("redis-server|valkey-server"):
            machine.run(f"kill {found}")
        process.wait(10)


def test_a_run_over_tls_between_two_machines(cluster: list[Machine], authority: Authority, tmp_path: Path) -> None:
    first, second = cluster
    share_token(first, [second])
    start_ray(first, STEPS[3][0])
    join(second)
    wait_until(lambda: "/4.0 CPU" in first.run(STEPS[3][2]), "Ray to show both machines")

    # Neither answers one who speaks plainly.
    plain = second.environment | {"RAY_USE_TLS": "0"}
    status = f"timeout 60 {STEPS[3][2]} --address 10.0.0.1:6379"
    assert subprocess.run(second.words(status), env=plain, capture_output=True).returncode != 0
    with redis_behind_tls(first, authority, tmp_path):
        ping = "timeout 5 bash -c 'exec 3<>/dev/tcp/10.0.0.1/6390; printf \"PING\\r\\n\" >&3; head -c 5 <&3'"
        assert "PONG" not in subprocess.run(second.words(ping), capture_output=True, text=True).stdout

        url = f"rediss://awac@10.0.0.1:6390?ssl_ca_certs={authority.certificate}"
        command = f"launcher up --env pen --actors 2 --run-dir runs/tls --ray-address auto --redis-url {url!r}"
        run = ClusterRun(first, tmp_path, "runs/tls")
        password = {"AWAC_REDIS_PASSWORD": PASSWORD}
        with run.output.open("ab") as output:
            run.process = subprocess.Popen(
                first.words(f"exec {command}{SMALL_JOB} --num-env-steps 2000"),
                env={**first.environment, **password},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        assert run.process.wait(400) == 0, run.text
        summary = json.loads((first.disk / "runs/tls/summary.json").read_text(encoding="utf-8"))
        assert (summary["status"], summary["env_steps"], summary["unaccounted_steps"]) == ("finished", 2000, 0)
        played = (second.disk / "runs/tls/logs").glob("actor*.log")
        assert any(path.stat().st_size for path in played)
