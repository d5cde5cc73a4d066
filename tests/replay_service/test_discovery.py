from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator

import pytest

from replay_service.discovery import TARGETS_PATH, DiscoveryServer, target_groups
from replay_service.run_state import RunStateStore
from tests.conftest import PATIENCE_S

GROUPS: list[dict[str, object]] = [{"targets": ["127.0.0.1:9"], "labels": {"role": "learner"}}]


def get(address: str, path: str) -> tuple[int, str, bytes]:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type", ""), response.read()
    finally:
        connection.close()


@pytest.fixture
def server() -> Iterator[DiscoveryServer]:
    running = DiscoveryServer(lambda: GROUPS, host="127.0.0.1", port=0)
    running.start()
    yield running
    running.stop()


def test_each_process_is_one_group_with_its_labels() -> None:
    endpoints = {"actor-3": "10.0.0.1:1", "learner": "10.0.0.2:2"}
    assert target_groups(endpoints, run_id="night", env="pen") == [
        {
            "targets": ["10.0.0.1:1"],
            "labels": {"role": "actor", "process": "actor-3", "run": "night", "env": "pen"},
        },
        {
            "targets": ["10.0.0.2:2"],
            "labels": {"role": "learner", "process": "learner", "run": "night", "env": "pen"},
        },
    ]


def test_the_document_is_served_as_json(server: DiscoveryServer) -> None:
    status, content_type, body = get(server.address, TARGETS_PATH)
    assert (status, content_type, json.loads(body)) == (200, "application/json", GROUPS)


def test_any_other_path_is_answered_with_where_to_look(server: DiscoveryServer) -> None:
    status, _, body = get(server.address, "/metrics")
    assert status == 404
    assert TARGETS_PATH.encode() in body


def test_processes_that_come_and_go_are_seen_at_the_next_request(state: RunStateStore) -> None:
    server = DiscoveryServer(lambda: target_groups(state.endpoints(), run_id="r", env="e"), host="127.0.0.1", port=0)
    server.start()
    try:
        assert json.loads(get(server.address, TARGETS_PATH)[2]) == []
        state.publish_endpoint("evaluator", "127.0.0.1:5")
        (group,) = json.loads(get(server.address, TARGETS_PATH)[2])
        assert group["targets"] == ["127.0.0.1:5"]
    finally:
        server.stop()


def test_a_failing_source_is_a_503_and_the_server_lives_on() -> None:
    answers: Iterator[list[dict[str, object]]] = iter([GROUPS])

    def groups() -> list[dict[str, object]]:
        try:
            return next(answers)
        except StopIteration:
            raise ConnectionError("redis is away; its password is hunter2") from None

    server = DiscoveryServer(groups, host="127.0.0.1", port=0)
    server.start()
    try:
        assert [get(server.address, TARGETS_PATH)[0] for _ in range(3)] == [200, 503, 503]
        assert b"hunter2" not in get(server.address, TARGETS_PATH)[2]
    finally:
        server.stop()


def test_a_taken_port_is_an_error(server: DiscoveryServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        DiscoveryServer(lambda: GROUPS, host="127.0.0.1", port=port)


def test_stopping_frees_the_port() -> None:
    server = DiscoveryServer(lambda: GROUPS, host="127.0.0.1", port=0)
    server.start()
    host, _, port = server.address.rpartition(":")
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=PATIENCE_S)
