"""Credentials for a Redis of one's own: a real server takes the file, and each user may do what its role needs."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import redis
import tomli_w

from replay_service.config import RunConfig
from replay_service.connection import RedisEndpoint, check, connect, password_from_environment
from replay_service.credentials import write_credentials
from replay_service.errors import ConfigError, RedisUnavailable
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.redis_server import find_server
from replay_service.run_state import RunStateStore
from tests.conftest import PATIENCE_S, WaitUntil
from tests.faults import listens

Enter = Callable[[str], RedisClient]


@pytest.fixture
def enter(run_config: RunConfig, tmp_path: Path, wait_until: WaitUntil) -> Iterator[Enter]:
    """Clients, by user, of a server that was started with the user file."""
    folder = tmp_path / "secrets"
    write_credentials(folder, run_config.run_id)
    socket = tmp_path / "s"
    options = (
        "--port",
        "0",
        "--unixsocket",
        socket,
        "--aclfile",
        folder / "users.acl",
        "--save",
        "",
        "--dir",
        tmp_path,
    )
    process = subprocess.Popen([find_server(), *map(str, options)], stdout=subprocess.DEVNULL)
    wait_until(lambda: listens(socket), "Redis to listen")

    def client(user: str) -> RedisClient:
        password = (folder / f"{user}.password").read_text(encoding="utf-8")
        name = "awac" if user == "admin" else f"awac-{user}"
        return connect(RedisEndpoint(f"unix://{name}@{socket}", password))

    yield client
    process.kill()
    process.wait()


def test_each_user_may_do_its_own_work(enter: Enter, run_config: RunConfig) -> None:
    keys = Keys(run_config.run_id)
    RunStateStore(enter("replay"), keys).initialise(run_config)
    assert enter("actor").hget(keys.run, "num_env_steps") == b"200"
    assert RunStateStore(enter("run"), keys).read().num_env_steps == 200
    with pytest.raises(redis.exceptions.NoPermissionError):
        enter("actor").hset(keys.run, "phase", "online")
    with pytest.raises(redis.exceptions.NoPermissionError):
        RunStateStore(enter("run"), Keys("another")).read()
    assert enter("health").ping()
    with pytest.raises(redis.exceptions.NoPermissionError):
        enter("health").hgetall(keys.run)
    assert enter("admin").hgetall(keys.run)


def test_the_default_user_is_closed(enter: Enter) -> None:
    pool = enter("admin").connection_pool  # type: ignore[attr-defined]
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(unix_socket_path=pool.connection_kwargs["path"]).ping()


def test_the_folder_is_private_and_holds_no_password_twice(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    written = write_credentials(folder, "a run")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    passwords = [path.read_text(encoding="utf-8") for path in written if path.suffix == ".password"]
    assert len(set(passwords)) == len(passwords) == 7
    users = (folder / "users.acl").read_text(encoding="utf-8")
    assert not any(password in users for password in passwords)


def test_files_for_a_new_run_keep_the_passwords(tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in write_credentials(tmp_path / "s", "one")}
    after = {path.name: path.read_bytes() for path in write_credentials(tmp_path / "s", "two")}
    assert before.pop("users.acl") != after.pop("users.acl")
    assert before == after


def test_a_short_password_and_a_run_without_a_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "admin.password").write_text("secret")
    with pytest.raises(ConfigError, match="at least 16 characters, got 6"):
        write_credentials(tmp_path, "run")
    with pytest.raises(ConfigError, match="run_id: expected the name of a run"):
        write_credentials(tmp_path / "other", "")
    assert not (tmp_path / "other").exists()


def test_the_program_names_its_files_and_no_password(run_config: RunConfig, tmp_path: Path) -> None:
    config, folder = tmp_path / "run.toml", tmp_path / "secrets"
    config.write_text(tomli_w.dumps(asdict(run_config)))
    program = [sys.executable, "-m", "replay_service.credentials", "--config", str(config), "--output"]
    done = subprocess.run([*program, folder], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "users.acl" in done.stdout
    assert (folder / "admin.password").read_text() not in done.stdout + done.stderr
    refused = subprocess.run([*program, config / "below"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert refused.returncode == 2
    assert "error: --output: cannot write" in refused.stderr


class TestPasswordFile:
    @pytest.fixture(autouse=True)
    def no_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWAC_REDIS_PASSWORD", raising=False)

    def test_it_is_read_without_its_last_line_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "p").write_text("a b\n")
        monkeypatch.setenv("AWAC_REDIS_PASSWORD_FILE", str(tmp_path / "p"))
        assert password_from_environment() == "a b"
        monkeypatch.setenv("AWAC_REDIS_PASSWORD", "first")
        assert password_from_environment() == "first"

    @pytest.mark.parametrize(("text", "said"), [(None, "cannot read .*No such file"), ("\n", "expected a password")])
    def test_one_that_is_missing_or_empty_is_named(
        self, text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if text is not None:
            (tmp_path / "p").write_text(text)
        monkeypatch.setenv("AWAC_REDIS_PASSWORD_FILE", str(tmp_path / "p"))
        with pytest.raises(RedisUnavailable, match=said):
            password_from_environment()

    def test_a_role_that_cannot_read_it_ends_with_code_2(self, run_config: RunConfig, tmp_path: Path) -> None:
        config = tmp_path / "run.toml"
        config.write_text(tomli_w.dumps(asdict(run_config)))
        environment = {"AWAC_REDIS_URL": "redis://awac-evaluator@localhost:1", "AWAC_REDIS_PASSWORD_FILE": "/no/such"}
        done = subprocess.run(
            [sys.executable, "-m", "actors", "evaluator", "--config", config],
            env={"PYTHONPATH": str(Path(__file__).parents[2]), **environment},
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 2
        assert "AWAC_REDIS_PASSWORD_FILE: cannot read /no/such" in done.stderr


def test_the_endpoint_of_the_environment_has_the_password_of_the_file(
    redis_endpoint: RedisEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p").write_text(f"{redis_endpoint.password}\n")
    monkeypatch.delenv("AWAC_REDIS_PASSWORD", raising=False)
    monkeypatch.setenv("AWAC_REDIS_URL", redis_endpoint.url)
    monkeypatch.setenv("AWAC_REDIS_PASSWORD_FILE", str(tmp_path / "p"))
    assert check(RedisEndpoint.from_environment())
