from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from replay_service.connection import (
    PASSWORD_VARIABLE,
    URL_VARIABLE,
    RedisEndpoint,
    check,
    connect,
    user_facing_errors,
)
from replay_service.errors import RedisUnavailable, RunDirectoryError
from replay_service.redis_server import find_server
from tests.faults import listens

if TYPE_CHECKING:
    from tests.conftest import WaitUntil

SECRET = "hunter2"


@contextmanager
def listener(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Something that listens on a port and is not a Redis that we can use; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    with connection:
                        while asked := connection.recv(65_536):
                            connection.sendall(answer(asked))
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def answer_as_redis_5(asked: bytes) -> bytes:
    """Redis 5 knows neither AUTH with a user nor CLIENT SETINFO; what matters here is what INFO says."""
    info = b"# Server\r\nredis_version:5.0.14\r\n"
    answers = {b"INFO": b"$%d\r\n%s\r\n" % (len(info), info)}
    commands = re.findall(rb"\*\d+\r\n\$\d+\r\n(\w+)", asked)
    return b"".join(answers.get(command, b"-ERR unknown command\r\n") for command in commands)


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "shown", "password"),
        [
            ("redis://host:6379", "redis://host:6379", ""),
            (f"redis://:{SECRET}@host:6379", "redis://host:6379", SECRET),
            (f"redis://user:{SECRET}@host:6379/2", "redis://user@host:6379/2", SECRET),
            (f"rediss://user:{SECRET}@host", "rediss://user@host", SECRET),
            (f"redis://user:{SECRET}@[::1]:6379", "redis://user@[::1]:6379", SECRET),
            ("redis://user:p%40ss%2Fword@host:6379", "redis://user@host:6379", "p@ss/word"),
            (f"redis://us%40er:{SECRET}@host:6379", "redis://us%40er@host:6379", SECRET),
            ("unix:///run/redis.sock", "unix:///run/redis.sock", ""),
            (f"unix://:{SECRET}@/run/redis.sock", "unix:///run/redis.sock", SECRET),
            (f"unix://user:{SECRET}@/run/redis.sock?db=1", "unix://user@/run/redis.sock?db=1", SECRET),
            (f"unix:///run/redis.sock?db=1&password={SECRET}", "unix:///run/redis.sock?db=1", SECRET),
            (f"redis://host:6379?password={SECRET}", "redis://host:6379", SECRET),
        ],
    )
    def test_a_password_is_split_off_and_the_rest_stays(self, url: str, shown: str, password: str) -> None:
        endpoint = RedisEndpoint.from_url(url)
        assert (endpoint.url, endpoint.password) == (shown, password)
        connect(endpoint).close()

    def test_a_password_given_apart_is_used_unless_the_url_has_one(self) -> None:
        assert RedisEndpoint.from_url("redis://user@host", "apart").password == "apart"
        assert RedisEndpoint.from_url("redis://user:inside@host", "apart").password == "inside"

    @pytest.mark.parametrize(
        "url",
        [
            "localhost:6379",
            "http://host:6379",
            f"http://user:{SECRET}@host:6379",
            "redis://host:port",
            "redis://host:65536",
            f"redis://user:{SECRET}@host:port",
            f"redis://user:{SECRET}/word@host:6379",
            "redis://[::1:6379",
            "redis://host:6379?db=first",
            "",
        ],
    )
    def test_a_url_that_leads_nowhere_is_the_users_mistake(self, url: str) -> None:
        with pytest.raises(RedisUnavailable, match="redis_url: expected redis://") as raised:
            RedisEndpoint.from_url(url)
        assert SECRET not in str(raised.value)

    def test_the_password_is_never_shown(self) -> None:
        endpoint = RedisEndpoint("redis://user@host:6379", SECRET)
        for text in (repr(endpoint), str(endpoint), f"{endpoint}", f"{[endpoint]}", endpoint.url):
            assert SECRET not in text
            assert "host:6379" in text


class TestEnvironment:
    def test_an_endpoint_goes_to_a_child_process_and_comes_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        endpoint = RedisEndpoint("redis://user@host:6379", SECRET)
        for name, value in endpoint.environment().items():
            monkeypatch.setenv(name, value)
        assert RedisEndpoint.from_environment() == endpoint

    def test_the_variables_that_are_missing_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(URL_VARIABLE, raising=False)
        with pytest.raises(RedisUnavailable, match=f"{URL_VARIABLE} .*{PASSWORD_VARIABLE}"):
            RedisEndpoint.from_environment()


class TestFile:
    ENDPOINT = RedisEndpoint("redis://user@host:6379", SECRET)

    def test_an_endpoint_is_saved_and_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "connection.json"
        self.ENDPOINT.save(path)
        assert RedisEndpoint.load(path) == self.ENDPOINT

    def test_only_the_owner_can_read_it_whatever_the_umask(self, tmp_path: Path) -> None:
        path = tmp_path / "connection.json"
        before = os.umask(0)
        try:
            self.ENDPOINT.save(path)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_save_that_was_cut_short_does_not_hinder_the_next(self, tmp_path: Path) -> None:
        path = tmp_path / "connection.json"
        (tmp_path / "connection.partial").write_text("half")
        self.ENDPOINT.save(path)
        assert RedisEndpoint.load(path) == self.ENDPOINT
        assert [entry.name for entry in tmp_path.iterdir()] == ["connection.json"]

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
    def test_a_file_that_others_can_open_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "connection.json"
        self.ENDPOINT.save(path)
        path.chmod(mode)
        with pytest.raises(RunDirectoryError, match=r"others can read it: run `chmod 600 .*connection\.json`"):
            RedisEndpoint.load(path)

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"url": "redis://host"}'])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "connection.json"
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(RunDirectoryError, match=r"connection\.json is damaged"):
            RedisEndpoint.load(path)

    def test_the_file_is_plain_json_for_other_tools(self, tmp_path: Path) -> None:
        path = tmp_path / "connection.json"
        self.ENDPOINT.save(path)
        assert json.loads(path.read_text()) == {"url": "redis://user@host:6379", "password": SECRET}


class TestCheck:
    def test_a_server_is_answered_with_its_version(self, redis_endpoint: RedisEndpoint) -> None:
        assert re.fullmatch(r"\d+\.\d+\.\d+", check(redis_endpoint))

    def test_a_wrong_password_is_named_as_such(self, redis_endpoint: RedisEndpoint) -> None:
        with pytest.raises(RedisUnavailable, match=f"refused the credentials .*{PASSWORD_VARIABLE}") as raised:
            check(replace(redis_endpoint, password=SECRET))
        assert SECRET not in str(raised.value)

    def test_a_missing_password_is_named_as_such(self, redis_endpoint: RedisEndpoint) -> None:
        with pytest.raises(RedisUnavailable, match="refused the credentials"):
            check(replace(redis_endpoint, password=""))

    def test_nobody_there_is_named_as_such(self) -> None:
        with pytest.raises(RedisUnavailable, match=r"no Redis answers at redis://127\.0\.0\.1:1 .*--redis-url"):
            check(RedisEndpoint("redis://127.0.0.1:1"))

    def test_a_socket_that_is_not_there_is_named_as_such(self, tmp_path: Path) -> None:
        with pytest.raises(RedisUnavailable, match="no Redis answers"):
            check(RedisEndpoint(f"unix://{tmp_path}/none.sock"))

    def test_a_unix_socket_is_as_good_as_a_port(self, tmp_path: Path, wait_until: WaitUntil) -> None:
        path = tmp_path / "redis.sock"
        arguments = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
        with subprocess.Popen([find_server(), *arguments], stdout=subprocess.DEVNULL) as server:
            try:
                wait_until(lambda: listens(path), "the server to open its socket")
                assert check(RedisEndpoint(f"unix://{path}"))
            finally:
                server.kill()

    def test_a_server_that_is_too_old_is_refused_with_its_version(self) -> None:
        with listener(answer_as_redis_5) as url, pytest.raises(RedisUnavailable, match=r"5\.0\.14; expected 6\.2"):
            check(RedisEndpoint(url))

    def test_something_that_is_no_redis_is_named_as_such(self) -> None:
        with (
            listener(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as url,
            pytest.raises(RedisUnavailable, match="no Redis answers"),
        ):
            check(RedisEndpoint(url))

    def test_other_errors_pass_through(self, redis_endpoint: RedisEndpoint) -> None:
        with pytest.raises(redis.exceptions.ResponseError), user_facing_errors(redis_endpoint):
            raise redis.exceptions.ResponseError("WRONGTYPE")


class TestClient:
    def test_nothing_is_sent_before_the_first_command(self) -> None:
        connect(RedisEndpoint("redis://127.0.0.1:1")).close()

    def test_replies_are_bytes_in_the_older_protocol(self, redis_endpoint: RedisEndpoint) -> None:
        client = connect(redis_endpoint)
        try:
            client.hset("connection-test", "field", "value")
            assert client.hgetall("connection-test") == {b"field": b"value"}
            client.xadd("connection-test-stream", {"field": "value"})
            ((name, [(_, fields)]),) = client.xread({"connection-test-stream": "0-0"}, count=1)
            assert (name, fields) == (b"connection-test-stream", {b"field": b"value"})
            client.delete("connection-test", "connection-test-stream")
        finally:
            client.close()

    def test_a_request_is_sent_once_and_not_again_when_no_answer_comes(self) -> None:
        """A hidden second sending would store a trajectory twice, were the append not idempotent."""
        heard: list[bytes] = []

        def answer(asked: bytes) -> bytes:
            heard.extend(re.findall(rb"PING", asked))
            return b"" if b"PING" in asked else answer_as_redis_5(asked)

        with listener(answer) as url:
            client = connect(RedisEndpoint(url), reply_timeout_s=5.0)  # also for each reply of the handshake
            with pytest.raises(redis.exceptions.TimeoutError):
                client.ping()
            client.close()
        assert heard == [b"PING"]
