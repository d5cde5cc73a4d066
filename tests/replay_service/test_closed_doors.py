"""What listens, listens on the loopback interface alone unless the user asked for another."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from replay_service.config import RunConfig
from replay_service.discovery import DiscoveryServer
from replay_service.errors import RedisUnavailable
from replay_service.process import (
    METRICS_PORT_VARIABLE,
    NODE_ADDRESS_VARIABLE,
    advertised_host,
    listening_host,
    serve_metrics,
)
from replay_service.redis_server import EmbeddedRedis, find_server
from tests.conftest import PATIENCE_S
from tests.ports import free_port


@pytest.fixture(scope="module")
def outside() -> str:
    """This machine's address on the interface that leads outside."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has the loopback interface alone")
        address = str(probe.getsockname()[0])
    if address.startswith("127."):
        pytest.skip("this machine has the loopback interface alone")
    return address


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


Serve = Callable[[str], int]
"""Serve at a host; the port."""


@pytest.fixture(params=["metrics", "service discovery"])
def serve(
    request: pytest.FixtureRequest, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Serve]:
    servers: list[DiscoveryServer] = []

    def begin(host: str) -> int:
        port = free_port()  # which no program of another interface has chosen
        monkeypatch.setenv(METRICS_PORT_VARIABLE, str(port))
        if request.param == "metrics":
            return int(serve_metrics(registry, host).rpartition(":")[2])
        servers.append(DiscoveryServer(lambda: [], host=host, port=port))
        servers[-1].start()
        return int(servers[-1].address.rpartition(":")[2])

    yield begin
    for server in servers:
        server.stop()


def test_the_default_is_the_loopback_interface() -> None:
    assert RunConfig().metrics_host == "127.0.0.1"


def test_nobody_outside_reaches_it_by_default(serve: Serve, outside: str, request: pytest.FixtureRequest) -> None:
    port = serve(RunConfig().metrics_host)
    path = "targets" if "discovery" in request.node.name else "metrics"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=PATIENCE_S) as answer:
        assert answer.status == 200
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((outside, port), timeout=PATIENCE_S)


def test_it_is_open_where_the_user_asks_for_it(serve: Serve, outside: str) -> None:
    with socket.create_connection((outside, serve("0.0.0.0")), timeout=PATIENCE_S):
        pass


def test_node_means_this_machine_s_address_in_its_cluster(
    serve: Serve, outside: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv(NODE_ADDRESS_VARIABLE, outside)
    path = "targets" if "discovery" in request.node.name else "metrics"
    refused = 0
    for _ in range(3):  # another program may have the same port on the loopback interface
        port = serve(listening_host("node"))
        with urllib.request.urlopen(f"http://{outside}:{port}/{path}", timeout=PATIENCE_S) as answer:
            assert answer.status == 200
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
        except ConnectionRefusedError:
            refused += 1
    assert refused >= 2


def test_what_is_advertised_leads_to_the_machine(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NODE_ADDRESS_VARIABLE, raising=False)
    assert listening_host("node") == "127.0.0.1"
    assert advertised_host("0.0.0.0") == socket.gethostname()
    monkeypatch.setenv(NODE_ADDRESS_VARIABLE, "127.0.0.2")
    address = serve_metrics(registry, "0.0.0.0")
    assert address.startswith("127.0.0.2:")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_S) as answer:
        assert answer.status == 200


def test_redis_listens_on_the_address_that_it_is_given_and_on_no_other(tmp_path: Path) -> None:
    running = EmbeddedRedis.start(tmp_path, server=find_server(), max_memory_mb=64, host="127.0.0.2", port=free_port())
    try:
        host, _, port = running.endpoint.url.rpartition("@")[2].partition(":")
        assert host == "127.0.0.2"
        with (
            pytest.raises(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE_S),
        ):
            pass
    finally:
        running.stop()


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RedisUnavailable, match=r"Redis cannot listen on 192\.0\.2\.1"):
        EmbeddedRedis.start(tmp_path, server=find_server(), max_memory_mb=64, host="192.0.2.1")
