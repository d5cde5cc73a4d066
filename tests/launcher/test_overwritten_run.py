"""A run that is overwritten leaves nothing in a Redis of the user's own, and other runs there alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.experiment import ExperimentConfig
from launcher.overwritten_run import delete_from_redis
from launcher.run_directory import RunDirectory
from replay_service.access import OWN_REDIS_RULES
from replay_service.config import RunConfig
from replay_service.connection import PASSWORD_VARIABLE, RedisEndpoint
from replay_service.keys import Keys
from replay_service.run_state import RunStateStore, is_in_redis
from tests.damaging_client import DamagingClient


def put(redis_client: DamagingClient, run: RunConfig, folder: Path) -> None:
    RunStateStore(redis_client, Keys(run.run_id)).initialise(run)
    redis_client.hset(Keys(run.run_id).actor(3), "epoch", 1)
    redis_client.sadd(Keys(run.run_id).actors, 3)
    folder.mkdir()
    RunDirectory(folder).config.write_text(ExperimentConfig(run=run).to_toml(), encoding="utf-8")


def keys_of(run: RunConfig, redis_client: DamagingClient) -> list[bytes]:
    prefix = Keys(run.run_id).run.removesuffix("run").encode()
    return [name for name in redis_client.scan_iter(count=100) if name.startswith(prefix)]


@pytest.mark.parametrize("suffix", ["", "[1]*?"])
def test_its_keys_are_deleted_and_no_others(
    redis_client: DamagingClient, redis_endpoint: RedisEndpoint, run_config: RunConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, suffix: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(PASSWORD_VARIABLE, redis_endpoint.password)
    old = replace(run_config, run_id=run_config.run_id + suffix, redis_url=redis_endpoint.url)
    other = replace(old, run_id=run_config.run_id + "1")
    put(redis_client, old, tmp_path / "old")
    put(redis_client, other, tmp_path / "other")
    delete_from_redis(tmp_path / "old")
    assert keys_of(old, redis_client) == []
    assert len(keys_of(other, redis_client)) == 3
    assert not is_in_redis(redis_endpoint, Keys(old.run_id))
    assert is_in_redis(redis_endpoint, Keys(other.run_id))


def test_a_user_with_no_more_rights_than_a_run_needs_can_do_it(
    redis_client: DamagingClient, redis_endpoint: RedisEndpoint, run_config: RunConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    redis_client.execute_command("ACL", "SETUSER", "limited", "on", ">secret", *OWN_REDIS_RULES.split())
    try:
        monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
        address = redis_endpoint.url.rpartition("@")[2]
        put(redis_client, replace(run_config, redis_url=f"redis://limited@{address}"), tmp_path / "old")
        delete_from_redis(tmp_path / "old")
        assert keys_of(run_config, redis_client) == []
    finally:
        redis_client.execute_command("ACL", "DELUSER", "limited")


def test_a_redis_that_is_gone_is_told_and_hinders_nothing(
    run_config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "old").mkdir()
    run = replace(run_config, redis_url="redis://127.0.0.1:1")
    RunDirectory(tmp_path / "old").config.write_text(ExperimentConfig(run=run).to_toml(), encoding="utf-8")
    delete_from_redis(tmp_path / "old")
    assert f"the overwritten run '{run.run_id}' stays in its Redis" in caplog.text
