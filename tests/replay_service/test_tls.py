"""A Redis behind TLS: the right certificate is accepted, any other is refused with a message that says what to do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tomli_w

from replay_service.config import RunConfig
from replay_service.connection import RedisEndpoint, check, connect
from replay_service.errors import RedisUnavailable
from replay_service.experience import ExperienceSpec
from replay_service.keys import Keys
from replay_service.patience import Patience
from replay_service.process import StopSignal
from replay_service.run_state import Phase, RunStateStore
from replay_service.trajectory_stream import TrajectoryWriter
from tests.certificates import OPENSSL, Authority
from tests.conftest import PATIENCE_S
from tests.ports import free_port

if TYPE_CHECKING:
    from tests.conftest import MakeTrajectory, WaitUntil

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if OPENSSL is None:
        pytest.skip("no openssl to make certificates with")
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "theirs")


StartTls = Callable[..., int]


@pytest.fixture
def start_tls(authority: Authority, tmp_path: Path, wait_until: WaitUntil) -> Iterator[StartTls]:
    """Start a server that speaks TLS alone; returns its port."""
    if SERVER is None:
        pytest.skip("no valkey-server or redis-server on the PATH; the packaged one has no TLS")
    started: list[subprocess.Popen[bytes]] = []

    def start(alternative_names: str = "IP:127.0.0.1,DNS:localhost", *, ask_clients: bool = False) -> int:
        certificate, key = authority.issue(f"server-{len(started)}", alternative_names)
        port = free_port()
        log = tmp_path / f"server-{len(started)}.log"
        options = (
            "--port", "0", "--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key,
            "--tls-ca-cert-file", authority.certificate, "--tls-auth-clients", "yes" if ask_clients else "no",
            "--bind", "127.0.0.1", "--save", "", "--dir", tmp_path, "--logfile", log,
        )  # fmt: skip
        process = subprocess.Popen([str(SERVER), *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        started.append(process)

        def is_up() -> bool:
            if process.poll() is not None:
                assert process.stdout is not None
                said = process.stdout.read().decode() + (log.read_text() if log.exists() else "")
                if "Bad directive" in said or "tls-port" in said:
                    pytest.skip(f"{SERVER} was built without TLS")
                pytest.fail(said)
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(is_up, "the TLS server to listen")
        return port

    yield start
    for process in started:
        process.kill()
        process.communicate()


def url(port: int, authority: Authority | None, host: str = "127.0.0.1", **more: object) -> str:
    options = {**({"ssl_ca_certs": authority.certificate} if authority else {}), **more}
    return f"rediss://{host}:{port}" + "".join(
        f"{'&' if i else '?'}{n}={v}" for i, (n, v) in enumerate(options.items())
    )


def test_a_run_works_behind_tls(
    start_tls: StartTls, authority: Authority, run_config: RunConfig, spec: ExperienceSpec,
    make_trajectory: MakeTrajectory,
) -> None:  # fmt: skip
    endpoint = RedisEndpoint.from_url(url(start_tls(), authority))
    assert check(endpoint)
    client, keys = connect(endpoint), Keys(run_config.run_id)
    state = RunStateStore(client, keys)
    state.initialise(run_config)
    state.set_phase(Phase.ONLINE)
    writer = TrajectoryWriter(client, keys, spec, actor_id=0)
    writer.register()
    writer.append(make_trajectory(0), want_steps=0)
    assert state.read().env_steps == 5
    client.close()


@pytest.mark.parametrize("which", ["another authority", "the system's authorities"])
def test_a_certificate_of_a_strange_authority_is_refused(start_tls: StartTls, stranger: Authority, which: str) -> None:
    endpoint = RedisEndpoint.from_url(url(start_tls(), stranger if which == "another authority" else None))
    with pytest.raises(RedisUnavailable, match=r"certificate of Redis at .* is not accepted .*ssl_ca_certs=FILE"):
        check(endpoint)


def test_a_certificate_of_another_host_is_refused(start_tls: StartTls, authority: Authority) -> None:
    port = start_tls("DNS:redis.example.org")
    with pytest.raises(RedisUnavailable, match=r"not accepted \(IP address mismatch.*the host as the certificate does"):
        check(RedisEndpoint.from_url(url(port, authority)))
    with pytest.raises(RedisUnavailable, match=r"not accepted \(Hostname mismatch.*'localhost'"):
        check(RedisEndpoint.from_url(url(port, authority, "localhost")))


def test_a_server_that_asks_for_certificates_gets_the_client_s(start_tls: StartTls, authority: Authority) -> None:
    port = start_tls(ask_clients=True)
    certificate, key = authority.issue("client", "DNS:client")
    assert check(RedisEndpoint.from_url(url(port, authority, ssl_certfile=certificate, ssl_keyfile=key)))
    with pytest.raises(RedisUnavailable, match="no Redis answers"):
        check(RedisEndpoint.from_url(url(port, authority)))


def test_plain_text_and_tls_do_not_meet(
    start_tls: StartTls, authority: Authority, redis_endpoint: RedisEndpoint
) -> None:
    with pytest.raises(RedisUnavailable, match="no Redis answers"):
        check(RedisEndpoint.from_url(f"redis://127.0.0.1:{start_tls()}"))
    plain_port = int(redis_endpoint.url.rpartition(":")[2])
    with pytest.raises(RedisUnavailable, match=r"no Redis answers|did not answer in time"):
        check(RedisEndpoint.from_url(url(plain_port, authority)))


def test_a_role_does_not_wait_for_a_certificate_to_become_right(start_tls: StartTls, stranger: Authority) -> None:
    client = connect(RedisEndpoint.from_url(url(start_tls(), stranger)))
    with pytest.raises(RedisUnavailable, match="certificate of Redis is not accepted"):
        Patience("actor 0", StopSignal()).until_answered(client.ping)
    client.close()


@pytest.mark.parametrize("program", ["launcher", "evaluator"])
def test_programs_end_with_a_message_and_code_2(
    program: str, start_tls: StartTls, stranger: Authority, run_config: RunConfig, tmp_path: Path
) -> None:
    wrong = url(start_tls(), stranger)
    config = tmp_path / "run.toml"
    config.write_bytes(tomli_w.dumps(asdict(run_config)).encode())
    arguments = {
        "launcher": ("launcher", "up", "--env", "pen", "--run-dir", str(tmp_path / "run"), "--redis-url", wrong),
        "evaluator": ("actors", "evaluator", "--config", str(config)),
    }[program]
    environment = {**os.environ, "AWAC_REDIS_URL": wrong}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 2, done.stderr
    assert "error: the certificate of Redis" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "config.toml").exists()


class TestFilesInTheUrl:
    def test_a_relative_one_is_made_absolute(self, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(authority.folder)
        endpoint = RedisEndpoint.from_url("rediss://host:6379?ssl_ca_certs=ca.pem&db=1")
        assert endpoint.url == f"rediss://host:6379?ssl_ca_certs={authority.certificate}&db=1"
        assert RedisEndpoint.from_url(endpoint.url) == endpoint

    def test_one_that_is_missing_is_named(self) -> None:
        with pytest.raises(RedisUnavailable, match=r"redis_url: ssl_ca_certs: there is no file /no/such/ca\.pem"):
            RedisEndpoint.from_url("rediss://host:6379?ssl_ca_certs=/no/such/ca.pem")

    def test_a_password_of_a_key_is_refused_because_it_would_be_written_down(self) -> None:
        with pytest.raises(RedisUnavailable, match="ssl_password") as raised:
            RedisEndpoint.from_url("rediss://host:6379?ssl_password=hunter2")
        assert "hunter2" not in str(raised.value)
