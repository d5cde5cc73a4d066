"""The doctor finds what is wrong in the data, not in the counters alone, and says nothing of a sound run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.doctor import Finding, checkpoint_finding, examine
from launcher.learner_node import NotedNode
from replay_service.config import RunConfig
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.run_state import RunStateStore
from replay_service.seeding import seed
from replay_service.trajectory_stream import TrajectoryWriter
from replay_service.weights_channel import WeightsChannel

if TYPE_CHECKING:
    from tests.conftest import MakePolicyWeights, MakeTrajectory


def bad(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings if not finding.sound]


@pytest.fixture
def sound_run(
    redis_client: RedisClient,
    keys: Keys,
    run_config: RunConfig,
    online_state: RunStateStore,
    writer: TrajectoryWriter,
    make_trajectory: MakeTrajectory,
    make_policy_weights: MakePolicyWeights,
    tmp_path: Path,
) -> Path:
    """A run with three messages of one actor, published weights and a checkpoint; returns its checkpoint folder."""
    seed(redis_client, keys, None)
    WeightsChannel(redis_client, keys).publish(make_policy_weights(version=1))
    writer.register()
    for sequence in range(3):
        writer.append(make_trajectory(epoch=writer.epoch, sequence=sequence), want_steps=0)
    folder = tmp_path / "checkpoints" / "step-000000000001"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"sha256": {}}))
    import numpy as np
    import safetensors.numpy

    safetensors.numpy.save_file({"generator": np.zeros(3, dtype=np.uint8)}, folder / "state.safetensors")
    return folder.parent


def test_a_sound_run_has_no_bad_finding(sound_run: Path, redis_client: RedisClient, run_config: RunConfig) -> None:
    findings = examine(redis_client, run_config, sound_run)
    assert bad(findings) == []
    assert len(findings) > 10


@pytest.mark.parametrize(
    ("field", "amount", "expected"),
    [
        ("env_steps", 7, "ledger:"),
        ("retained_steps", -1, "transitions in the stream"),
        ("leased_steps", 5, "leases:"),
        ("quarantined_steps", 3, "in quarantine"),
        ("online_grad_steps", 10_000, "limiter:"),
        ("policy_version", 1, "weights:"),
    ],
)
def test_a_counter_that_drifted_is_found(
    field: str,
    amount: int,
    expected: str,
    sound_run: Path,
    redis_client: RedisClient,
    keys: Keys,
    run_config: RunConfig,
) -> None:
    redis_client.hincrby(keys.run if field in ("online_grad_steps", "policy_version") else keys.counters, field, amount)
    assert any(expected in text for text in bad(examine(redis_client, run_config, sound_run)))


def test_an_account_without_a_number_is_found(
    sound_run: Path, redis_client: RedisClient, keys: Keys, run_config: RunConfig
) -> None:
    redis_client.hset(keys.actor(0), "lease", "many")
    assert "actor 0: its account holds no number in lease" in bad(examine(redis_client, run_config, sound_run))


def test_a_message_that_vanished_is_found_although_no_counter_says_so(
    sound_run: Path, redis_client: RedisClient, keys: Keys, run_config: RunConfig
) -> None:
    middle = redis_client.xrange(keys.online)[1][0].decode()
    redis_client.xdel(keys.online, middle)  # type: ignore[attr-defined]  # the project itself never deletes like this
    found = " | ".join(bad(examine(redis_client, run_config, sound_run)))
    assert "gaps in actors' sequences" in found
    assert "missing between messages" in found
    assert "each actor's steps" in found


def test_a_message_that_was_doubled_is_found(
    sound_run: Path, redis_client: RedisClient, keys: Keys, run_config: RunConfig
) -> None:
    fields = redis_client.xrange(keys.online)[-1][1]
    redis_client.xadd(keys.online, {name.decode(): value for name, value in fields.items()})
    assert any("doubled" in text for text in bad(examine(redis_client, run_config, sound_run)))


def test_a_strangers_message_is_found(
    sound_run: Path, redis_client: RedisClient, keys: Keys, run_config: RunConfig
) -> None:
    redis_client.xadd(keys.online, {"m": b"hello"})
    assert any("malformed" in text for text in bad(examine(redis_client, run_config, sound_run)))


def test_checkpoints_that_another_node_keeps_are_not_missed_here(
    sound_run: Path, redis_client: RedisClient, run_config: RunConfig
) -> None:
    shutil.rmtree(sound_run)
    assert bad(examine(redis_client, run_config, sound_run)) == ["checkpoint: none yet"]
    findings = examine(redis_client, run_config, sound_run, elsewhere=NotedNode("10.0.0.2", 0.0))
    assert bad(findings) == []
    assert "checkpoint: not looked at, the learner keeps them on 10.0.0.2" in [finding.text for finding in findings]


def test_a_checkpoint_with_another_hash_is_found(
    sound_run: Path, redis_client: RedisClient, run_config: RunConfig, online_state: RunStateStore
) -> None:
    manifest = sound_run / "step-000000000001" / "manifest.json"
    manifest.write_text(json.dumps({"sha256": {"generator": "0" * 64}}))
    state = online_state.read()
    assert not checkpoint_finding(sound_run, state).sound
    manifest.write_text("{")
    assert "unreadable" in checkpoint_finding(sound_run, state).text


@pytest.mark.parametrize(("over", "is_sound"), [(0, True), (1, True), (10, True), (11, False)])
def test_a_budget_may_be_passed_by_what_lapsed_leases_can_explain_and_by_no_more(
    sound_run: Path, redis_client: RedisClient, keys: Keys, run_config: RunConfig, online_state: RunStateStore,
    over: int, is_sound: bool,
) -> None:  # fmt: skip
    stored = online_state.read().env_steps
    redis_client.hset(keys.run, "num_env_steps", stored - over)
    (finding,) = [f for f in examine(redis_client, run_config, sound_run) if f.text.startswith("budget:")]
    assert finding.sound is is_sound
    assert ("lapsed" in finding.text) is (over > 0)
