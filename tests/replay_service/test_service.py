from __future__ import annotations

import errno
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import redis

from replay_service import patience, records, service
from replay_service.config import RunConfig
from replay_service.connection import PASSWORD_VARIABLE, TRANSIENT_ERRORS, RedisEndpoint, connect
from replay_service.data_lock import SERVICE_LOCK, is_served
from replay_service.datasets import Episode, OfflineDataset
from replay_service.errors import ConfigError, DatasetError
from replay_service.experience import ExperienceSpec
from replay_service.keys import Keys
from replay_service.process import PARENT_VARIABLE, StopSignal
from replay_service.records import write_json
from replay_service.redis_client import RedisClient
from replay_service.run_state import Phase, RunStateStore
from replay_service.seeding import seed_info
from replay_service.service import ReplayService, ServiceFiles, resolve_sources
from replay_service.trajectory_stream import TrajectoryWriter
from tests.conftest import PATIENCE_S
from tests.faults import bound_by_modes, no_memory, paused, wait_until_written

if TYPE_CHECKING:
    from tests.conftest import WaitUntil

CONFIG = """
env = "Pendulum-v1"
dataset = ["none"]
run_id = "service-test"
environment = {max_episode_steps = 20, observation_dim = 3, action_dim = 1}
"""
KEYS = Keys("service-test")
SPEC = ExperienceSpec("Pendulum-v1", 3, 1, 20)

Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def files(tmp_path: Path) -> ServiceFiles:
    return ServiceFiles(tmp_path / "run")


@pytest.fixture
def serve(tmp_path: Path, files: ServiceFiles, wait_until: WaitUntil) -> Iterator[Serve]:
    """Start the service as a process and wait until it is open, or has ended."""
    started: list[subprocess.Popen[str]] = []

    def start(config: str = CONFIG) -> subprocess.Popen[str]:
        path = tmp_path / "run.toml"
        path.write_text(config, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "replay_service", "--config", str(path), "--run-dir", str(files.run_dir)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
        )
        started.append(process)
        wait_until(lambda: files.ready.exists() or process.poll() is not None, "the service to open or to end")
        return process

    yield start
    for process in started:
        process.kill()
        if process.stderr is not None:
            process.stderr.close()
        process.wait()


SECOND = """
import sys
from pathlib import Path
from replay_service import service
from replay_service.config_file import load_run_config
from replay_service.process import StopSignal
service._LAST_SERVICE_TIMEOUT_S = 0.2
run_dir = Path(sys.argv[1])
service.ReplayService(load_run_config(run_dir.parent / "run.toml"), run_dir, stop=StopSignal()).run()
"""


def stop(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.terminate()
    _, errors = process.communicate()
    return process.returncode, errors


def end_of(process: subprocess.Popen[str]) -> tuple[int | None, str]:
    """Exit code and errors of a process that should have ended by itself; None when it is up and running."""
    if process.poll() is None:
        return None, ""
    _, errors = process.communicate()
    return process.returncode, errors


class TestSources:
    def test_the_shipped_demonstrations_are_the_default_of_the_tasks(self, run_config: RunConfig) -> None:
        for task in ("pen", "door", "relocate"):
            (path,) = resolve_sources(replace(run_config, env=task, dataset=()))
            assert Path(path).name == f"{task}.npz"
            assert Path(path).exists()

    def test_any_other_environment_starts_without_data(self, run_config: RunConfig) -> None:
        assert resolve_sources(replace(run_config, dataset=())) == ()

    def test_what_the_user_names_is_taken_as_it_is(self, run_config: RunConfig) -> None:
        assert resolve_sources(replace(run_config, env="pen", dataset=("a", "b"))) == ("a", "b")

    def test_none_means_none_and_stands_alone(self, run_config: RunConfig) -> None:
        assert resolve_sources(replace(run_config, env="pen", dataset=("none",))) == ()
        with pytest.raises(ConfigError, match="cannot stand beside other datasets"):
            resolve_sources(replace(run_config, dataset=("none", "a")))


class TestFaults:
    """The service as a thread of the test, on a Redis of the user's own, so that a fault can be put into it."""

    @pytest.fixture
    def run(self, run_config: RunConfig, redis_endpoint: RedisEndpoint, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
        monkeypatch.setenv(PASSWORD_VARIABLE, redis_endpoint.password)
        monkeypatch.setattr(service, "_PERIOD_S", 0.05)
        return replace(run_config, redis_url=redis_endpoint.url)

    @pytest.fixture
    def serving(
        self, run: RunConfig, files: ServiceFiles, wait_until: WaitUntil
    ) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def begin() -> Iterator[None]:
            stop = StopSignal()
            thread = threading.Thread(target=ReplayService(run, files.run_dir, stop=stop).run, daemon=True)
            thread.start()
            try:
                wait_until(files.ready.exists, "the service to open")
                yield
            finally:
                stop.set()
                thread.join(PATIENCE_S)
            assert not thread.is_alive()

        return begin

    def status(self, files: ServiceFiles) -> str:
        found: str = json.loads((files.run_dir / "summary.json").read_text(encoding="utf-8"))["status"]
        return found

    def test_a_full_disk_is_not_taken_for_a_silent_redis(
        self, serving: Callable[[], AbstractContextManager[None]], files: ServiceFiles, wait_until: WaitUntil,
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(patience, "_LOOK_EVERY_S", 0.05)
        monkeypatch.setattr(patience, "_NOTICE_PERIOD_S", 4.0)  # a machine that is busy does stop for a second
        caplog.set_level("INFO")
        is_full = threading.Event()

        def write(path: Path, values: dict[str, Any]) -> None:
            if is_full.is_set():
                raise OSError(errno.ENOSPC, "No space left on device")
            write_json(path, values)

        monkeypatch.setattr(records, "write_json", write)
        with serving():
            is_full.set()
            wait_until(lambda: "waits for room on the disk" in caplog.text, "the full disk to be told")
            time.sleep(6.0)
            is_full.clear()
            (files.run_dir / "summary.json").unlink(missing_ok=True)
            wait_until((files.run_dir / "summary.json").exists, "the summary to be written again")
        assert "waits for Redis" not in caplog.text

    def test_a_redis_that_answers_but_takes_no_writes_is_an_outage_also_while_there_is_nothing_to_write(
        self, serving: Callable[[], AbstractContextManager[None]], redis_client: RedisClient, wait_until: WaitUntil,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        """Else it ended unnoticed, and leases of actors that could not be heard in it lapsed at its end."""
        caplog.set_level("INFO")
        admin: Any = redis_client
        with serving():
            admin.config_set("min-replicas-to-write", 1)  # it has none; as with a full disk, reads go on
            try:
                wait_until(lambda: "replay service waits for Redis to take writes" in caplog.text, "a line in the log")
            finally:
                admin.config_set("min-replicas-to-write", 0)
            wait_until(lambda: "replay service: Redis answers again" in caplog.text, "the end of the outage")

    def test_the_summary_says_that_the_run_is_done_before_the_service_ends(
        self, serving: Callable[[], AbstractContextManager[None]], files: ServiceFiles, run: RunConfig,
        redis_client: RedisClient, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        with serving():
            wait_until((files.run_dir / "summary.json").exists, "the first summary")
            assert self.status(files) == "running"
            RunStateStore(redis_client, Keys(run.run_id)).set_final_status("finished")
            wait_until(lambda: self.status(files) == "finished", "the summary to say so")

    def test_an_endpoint_that_cannot_be_withdrawn_does_not_cost_the_last_summary(
        self, serving: Callable[[], AbstractContextManager[None]], files: ServiceFiles,
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        def refuse(*_: object) -> None:
            raise redis.exceptions.ResponseError("MISCONF Errors writing to the AOF file")

        monkeypatch.setattr(RunStateStore, "withdraw_endpoint", refuse)
        with serving():
            pass
        assert self.status(files) == "stopped"
        assert "withdraw from service discovery: MISCONF" in caplog.text

    def test_a_last_summary_that_cannot_be_written_is_told_and_does_not_cost_the_withdrawal(
        self, serving: Callable[[], AbstractContextManager[None]], redis_client: RedisClient, keys: Keys,
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        def write(path: Path, values: dict[str, Any]) -> None:
            if values.get("status", "running") != "running":
                raise OSError(errno.ENOSPC, "No space left on device")
            write_json(path, values)

        monkeypatch.setattr(records, "write_json", write)
        state = RunStateStore(redis_client, keys)
        with serving():
            assert list(state.endpoints()) == ["replay"]
        assert state.endpoints() == {}
        assert "write the last summary: " in caplog.text

    def test_offline_data_that_redis_forgot_are_stored_again(
        self, serving: Callable[[], AbstractContextManager[None]], redis_client: RedisClient, keys: Keys,
        run: RunConfig, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        state = RunStateStore(redis_client, keys)
        with serving():
            before = seed_info(redis_client, keys)
            state.set_phase(Phase.ONLINE)
            redis_client.delete(keys.seed_info)  # as if it had died before this was on the disk
            wait_until(lambda: seed_info(redis_client, keys) is not None, "the offline data to be stored again")
            assert seed_info(redis_client, keys) == before
            assert state.read().phase is Phase.ONLINE

    def test_a_dataset_that_is_gone_when_redis_has_forgotten_it_does_not_end_the_run(
        self, serving: Callable[[], AbstractContextManager[None]], redis_client: RedisClient, keys: Keys,
        wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        def missing(_run: RunConfig) -> None:
            raise DatasetError("demos.npz: no such file")

        state = RunStateStore(redis_client, keys)
        with serving():
            monkeypatch.setattr(service, "load_seed_data", missing)
            redis_client.delete(keys.seed_info)
            wait_until(lambda: "cannot be stored again: demos.npz: no such file" in caplog.text, "the loss to be told")
            redis_client.hset(keys.endpoints, "noted", "by a living service")
            before = redis_client.hget(keys.processes, "replay")
            redis_client.hdel(keys.processes, "replay")
            wait_until(lambda: redis_client.hget(keys.processes, "replay") == before, "a service that goes on")
            assert list(state.endpoints()) == ["noted", "replay"]
        assert caplog.text.count("cannot be stored again") == 1

    def test_another_dataset_does_not_take_the_place_of_one_that_redis_has_forgotten(
        self, serving: Callable[[], AbstractContextManager[None]], redis_client: RedisClient, keys: Keys,
        wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        episode = Episode(
            observations=np.zeros((3, 3), np.float32), actions=np.zeros((2, 1), np.float32),
            rewards=np.zeros(2, np.float32), terminated=False, truncated=True,
        )  # fmt: skip
        with serving():
            monkeypatch.setattr(service, "load_seed_data", lambda _run: OfflineDataset((episode,), ("other",)))
            redis_client.delete(keys.seed_info)
            wait_until(lambda: "cannot be stored again: the dataset is another" in caplog.text, "the loss to be told")
        assert seed_info(redis_client, keys) is None


class TestProcess:
    def test_it_opens_a_run_and_closes_it_in_order(self, serve: Serve, files: ServiceFiles) -> None:
        process = serve()
        assert files.ready.read_text(encoding="utf-8") == str(process.pid)
        client = connect(RedisEndpoint.load(files.connection))
        assert RunStateStore(client, KEYS).read().phase is Phase.PRETRAINING
        address = (client.hget(KEYS.run, "discovery") or b"").decode()
        client.close()
        connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
        connection.request("GET", "/targets")
        (group,) = json.load(connection.getresponse())
        connection.close()
        assert group["labels"] == {"role": "replay", "process": "replay", "run": "service-test", "env": "Pendulum-v1"}

        code, errors = stop(process)
        assert code == 0, errors
        assert not files.ready.exists()
        assert json.loads((files.run_dir / "summary.json").read_text(encoding="utf-8"))["status"] == "stopped"

    def test_a_second_session_finds_the_run_at_the_same_endpoint(self, serve: Serve, files: ServiceFiles) -> None:
        first = serve()
        endpoint = RedisEndpoint.load(files.connection)
        client = connect(endpoint)
        client.hset(KEYS.run, "env_steps", 123)
        stop(first)
        serve()
        assert RedisEndpoint.load(files.connection) == endpoint
        assert RunStateStore(client, KEYS).read().env_steps == 123
        client.close()

    def test_a_second_one_on_the_same_files_is_refused_and_disturbs_nothing(
        self, serve: Serve, files: ServiceFiles
    ) -> None:
        first = serve()
        ready = files.ready.read_text(encoding="utf-8")
        refused = subprocess.run(
            [sys.executable, "-c", SECOND, str(files.run_dir)], capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert refused.returncode == 1
        assert f"another replay service runs on {files.run_dir}: stop the processes" in refused.stderr
        assert files.ready.read_text(encoding="utf-8") == ready
        assert first.poll() is None

    def test_a_second_one_that_waits_ends_when_it_is_asked_to(self, serve: Serve, files: ServiceFiles) -> None:
        first = serve()
        second = subprocess.Popen(
            [sys.executable, "-u", "-m", "replay_service", "--config", str(files.run_dir.parent / "run.toml"),
             "--run-dir", str(files.run_dir)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert second.stderr is not None
            line = second.stderr.readline()
            assert f"another replay service still runs on {files.run_dir}: waiting for its end" in line
            second.terminate()
            assert second.wait(PATIENCE_S) == 0  # it would be 2 had it waited to the end
        finally:
            second.kill()
            second.communicate()
        assert first.poll() is None
        assert files.ready.exists()

    def test_a_folder_that_cannot_be_written_is_a_user_error(self, serve: Serve, files: ServiceFiles) -> None:
        files.redis_dir.mkdir(parents=True, mode=0o500)
        (files.run_dir.parent / "run.toml").write_text(CONFIG, encoding="utf-8")
        done = subprocess.run(
            [*bound_by_modes(), sys.executable, "-m", "replay_service", "--config",
             str(files.run_dir.parent / "run.toml"), "--run-dir", str(files.run_dir)],
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == f"error: cannot write {files.redis_dir}: Permission denied"

    def test_it_is_seen_to_run_also_while_its_redis_does_not_answer(self, serve: Serve, files: ServiceFiles) -> None:
        process = serve()
        client = connect(RedisEndpoint.load(files.connection))
        server = int(client.info("server")["process_id"])
        client.close()
        with paused(server):
            assert is_served(files.redis_dir, SERVICE_LOCK, for_s=3.0)
        stop(process)
        assert not is_served(files.redis_dir, SERVICE_LOCK)

    def test_a_redis_that_died_is_started_again_on_its_data(
        self, serve: Serve, files: ServiceFiles, wait_until: WaitUntil
    ) -> None:
        process = serve()
        client = connect(RedisEndpoint.load(files.connection))
        client.hset(KEYS.run, "env_steps", 123)
        killed = int(client.info("server")["process_id"])
        wait_until_written(client)
        os.kill(killed, signal.SIGKILL)

        def is_back() -> bool:
            try:
                return client.ping() and int(client.info("server")["process_id"]) != killed
            except TRANSIENT_ERRORS:
                return False

        wait_until(is_back, "Redis to come back")
        assert RunStateStore(client, KEYS).read().env_steps == 123
        client.close()
        assert process.poll() is None

    def test_a_redis_that_dies_while_it_owes_an_answer_is_started_again(
        self, serve: Serve, files: ServiceFiles, wait_until: WaitUntil
    ) -> None:
        process = serve()
        client = connect(RedisEndpoint.load(files.connection), reply_timeout_s=5.0)
        killed = int(client.info("server")["process_id"])
        os.kill(killed, signal.SIGSTOP)
        time.sleep(2.5)  # it looks once a second: by now it waits for an answer
        os.kill(killed, signal.SIGKILL)

        def is_back() -> bool:
            try:
                return int(client.info("server")["process_id"]) != killed
            except TRANSIENT_ERRORS:
                return False

        wait_until(is_back, "Redis to come back")
        client.close()
        assert process.poll() is None

    @pytest.mark.slow
    @pytest.mark.parametrize("fault", ["no memory", "paused"])
    def test_leases_of_the_silent_are_given_back_but_not_after_an_outage(
        self, serve: Serve, files: ServiceFiles, wait_until: WaitUntil, fault: str
    ) -> None:
        actor_timeout_s = 4.0
        process = serve(CONFIG + f"[replay]\nactor_timeout_s = {actor_timeout_s}\n")
        admin = connect(RedisEndpoint.load(files.connection))
        state = RunStateStore(admin, KEYS)
        state.set_phase(Phase.ONLINE)
        admin.hset(KEYS.run, "policy_version", 1)

        def lease(actor_id: int) -> None:
            writer = TrajectoryWriter(admin, KEYS, SPEC, actor_id=actor_id)
            writer.register()
            assert writer.request(10).lease_steps == 10

        lease(0)
        wait_until(lambda: state.read().leased_steps == 0, "the lease of an actor that fell silent to lapse")

        lease(1)
        pid = int(admin.info("server")["process_id"])
        with no_memory(admin) if fault == "no memory" else paused(pid):
            time.sleep(actor_timeout_s + 4.0)  # longer than both time-outs, and shorter than that of a reply
            ended = time.monotonic()
        wait_until(lambda: state.read().leased_steps == 0, "the lease to lapse once there was time to be heard")
        assert time.monotonic() - ended >= actor_timeout_s - 0.1
        admin.close()
        assert process.poll() is None

    def test_data_that_vanished_are_missed_at_every_start_and_never_replaced_by_an_empty_run(
        self, serve: Serve, files: ServiceFiles
    ) -> None:
        stop(serve())
        shutil.rmtree(files.redis_dir / "appendonlydir")
        for _ in range(2):
            code, errors = end_of(serve())
            assert code == 2, errors
            assert "Redis no longer has its data" in errors

    def test_a_directory_of_another_run_is_refused_by_both_names(self, serve: Serve) -> None:
        stop(serve())
        code, errors = end_of(serve(CONFIG.replace("service-test", "another")))
        assert code == 2, errors
        assert "is of run 'service-test', and the configuration names run 'another'" in errors

    def test_a_new_run_directory_does_not_take_over_a_run_that_redis_holds(
        self, serve: Serve, files: ServiceFiles, redis_endpoint: RedisEndpoint, redis_client: RedisClient,
        run_config: RunConfig, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv(PASSWORD_VARIABLE, redis_endpoint.password)
        config = CONFIG.replace("service-test", run_config.run_id) + f'redis_url = "{redis_endpoint.url}"'
        keys = Keys(run_config.run_id)
        stop(serve(config))  # begins it
        redis_client.hset(keys.run, "stop_requested", 1)
        before = redis_client.hgetall(keys.run)
        files.run_dir.rename(files.run_dir.with_name("elsewhere"))
        code, errors = end_of(serve(config))
        assert code == 2, errors
        assert f"Redis holds a run '{run_config.run_id}' already" in errors
        assert redis_client.hgetall(keys.run) == before

        files.redis_dir.joinpath("opened").unlink(missing_ok=True)
        files.opening.touch()  # as after a crash between creating the state and noting it
        assert end_of(serve(config)) == (None, "")

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ("acters = 2", "unknown key 'acters'. Did you mean 'actors'?"),
            (CONFIG + 'redis_url = "redis://127.0.0.1:1"', "no Redis answers at redis://127.0.0.1:1"),
            (CONFIG.replace('["none"]', '["/no/such/file.npz"]'), "/no/such/file.npz"),
        ],
        ids=["configuration", "Redis", "dataset"],
    )
    def test_a_users_mistake_is_one_message_and_exit_code_2(self, serve: Serve, config: str, words: str) -> None:
        code, errors = end_of(serve(config))
        assert code == 2, errors
        assert words in errors
        assert "Traceback" not in errors
