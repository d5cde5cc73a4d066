"""Programs of different versions refuse each other, and name both versions: real processes, a real Redis."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tomli_w

from replay_service.config import EnvironmentConfig, RunConfig
from replay_service.connection import RedisEndpoint
from replay_service.experience import WIRE_VERSION
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.run_state import RunStateStore
from replay_service.seeding import seed
from replay_service.service import ServiceFiles
from replay_service.spec_check import SPEC_FIELD, spec_text

pytestmark = [pytest.mark.system]

ROLES = {
    "learner": ("learner", "--device", "cpu", "--checkpoint-dir", "checkpoints"),
    "evaluator": ("actors", "evaluator"),
    "actor 0": ("actors", "actor", "--indices", "0"),
    "replay service": ("replay_service", "--run-dir", "run"),
}


@pytest.fixture
def pen(keys: Keys) -> RunConfig:
    shape = EnvironmentConfig(max_episode_steps=200, observation_dim=45, action_dim=24)
    return RunConfig(env="pen", run_id=keys.run_id, environment=shape, actors=1)


def outcome(role: str, run: RunConfig, endpoint: RedisEndpoint, folder: Path) -> tuple[int, str]:
    config = folder / "config.toml"
    config.write_bytes(tomli_w.dumps(asdict(run)).encode())
    module, *options = ROLES[role]
    done = subprocess.run(
        [sys.executable, "-m", module, *options, "--config", str(config)],
        env={**os.environ, **endpoint.environment()}, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_a_program_of_another_wire_version_is_refused(
    role: str, pen: RunConfig, redis_client: RedisClient, redis_endpoint: RedisEndpoint, keys: Keys, tmp_path: Path
) -> None:
    RunStateStore(redis_client, keys).initialise(pen)
    seed(redis_client, keys, None)
    theirs = json.dumps({**json.loads(spec_text(pen.spec)), "wire_version": WIRE_VERSION + 7}, sort_keys=True)
    fingerprint = hashlib.sha256(theirs.encode()).hexdigest()[:16]
    redis_client.hset(keys.run, mapping={"spec_fingerprint": fingerprint, SPEC_FIELD: theirs})
    run = pen
    if role == "replay service":  # of a run that its own directory began, before the program was replaced
        run = replace(pen, redis_url=redis_endpoint.url)
        opened = ServiceFiles(tmp_path / "run").opened
        opened.parent.mkdir(parents=True)
        opened.touch()
    code, said = outcome(role, run, redis_endpoint, tmp_path)
    assert code == 2, said
    assert f"{role} does not fit run {keys.run_id!r}" in said
    assert f"wire version {WIRE_VERSION} here, {WIRE_VERSION + 7} there" in said
    assert fingerprint in said
    assert pen.spec.fingerprint in said
    assert "Traceback" not in said


def test_what_else_differs_is_named_too(
    pen: RunConfig, redis_client: RedisClient, redis_endpoint: RedisEndpoint, keys: Keys, tmp_path: Path
) -> None:
    longer = replace(pen, environment=replace(pen.environment, max_episode_steps=300))
    RunStateStore(redis_client, keys).initialise(longer)
    seed(redis_client, keys, None)
    code, said = outcome("learner", pen, redis_endpoint, tmp_path)
    assert code == 2, said
    assert "max episode steps 200 here, 300 there" in said
    assert "wire version" not in said


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "1"])
def test_a_run_without_a_readable_spec_is_refused_all_the_same(
    text: str, pen: RunConfig, redis_client: RedisClient, redis_endpoint: RedisEndpoint, keys: Keys, tmp_path: Path
) -> None:
    RunStateStore(redis_client, keys).initialise(pen)
    seed(redis_client, keys, None)
    redis_client.hset(keys.run, mapping={"spec_fingerprint": "0123456789abcdef", SPEC_FIELD: text})
    code, said = outcome("learner", pen, redis_endpoint, tmp_path)
    assert code == 2, said
    assert "what differs is not on record" in said
