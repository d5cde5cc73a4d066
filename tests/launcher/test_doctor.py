"""The doctor finds what is wrong in the data, not in the counters alone, and says nothing of a sound run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.doctor import Finding, checkpoint_finding, examine
from launcher.former_settings import RESUMED
from launcher.learner_node import NotedNode
from launcher.run_settings import describe_differences
from replay_service import wire
from replay_service.config import RunConfig
from replay_service.keys import Keys
from replay_service.redis_client import Field, RedisClient
from replay_service.run_state import Phase, RunStateStore
from replay_service.seeding import seed
from replay_service.trajectory_stream import TrajectoryWriter
from replay_service.weights_channel import WeightsChannel
from tests.damaging_client import DamagingClient

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
    sound_run: Path, redis_client: DamagingClient, keys: Keys, run_config: RunConfig
) -> None:
    middle = redis_client.xrange(keys.online)[1][0].decode()
    redis_client.xdel(keys.online, middle)
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


def log_resume(checkpoints: Path, **settings: tuple[int, int]) -> None:
    """What a resume with other settings writes to the launcher's log: each setting's value before, and now."""
    before, now = ({name: pair[i] for name, pair in settings.items()} for i in (0, 1))
    log = checkpoints.parent / "logs" / "launcher.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"2026-01-01 00:00:00,000 launcher INFO num_env_steps (9999 and 9999)\n"
                   f"2026-01-01 00:00:00,000 launcher WARNING {RESUMED}"
                   f"{describe_differences(before, now, may_differ=())}\n")  # fmt: skip


def text_of(findings: list[Finding], beginning: str) -> str:
    (found,) = [str(finding) for finding in findings if finding.text.startswith(beginning)]
    return found


def test_a_run_that_was_resumed_with_a_smaller_budget_is_sound(
    sound_run: Path, redis_client: RedisClient, run_config: RunConfig, online_state: RunStateStore
) -> None:
    stored = online_state.read().env_steps
    now = replace(run_config, num_env_steps=3)
    online_state.initialise(now)
    assert [
        text.partition(":")[0] for text in bad(examine(redis_client, replace(now, rollout_length=1), sound_run))
    ] == ["budget"]
    log_resume(sound_run, actors=(1, 2), num_env_steps=(run_config.num_env_steps, 3), initial_env_steps=(20, 21))
    findings = examine(redis_client, now, sound_run)
    assert bad(findings) == []
    assert text_of(findings, "budget:") == "ok   budget: 15 of 3 env steps, which were 200 before a resume"
    log_resume(sound_run, num_env_steps=(stored - 9, 3))  # a run may be resumed many times
    assert bad(examine(redis_client, now, sound_run)) == []


def test_steps_beyond_every_budget_are_found_however_often_it_was_changed(
    sound_run: Path, redis_client: RedisClient, keys: Keys, run_config: RunConfig
) -> None:
    log_resume(sound_run, num_env_steps=(4, 3))
    redis_client.hset(keys.run, "num_env_steps", 3)
    assert [text.partition(",")[0] for text in bad(examine(redis_client, run_config, sound_run))] == [
        "budget: 15 of 3 env steps"
    ]


def test_a_run_that_was_resumed_with_more_initial_steps_is_sound(
    sound_run: Path, redis_client: RedisClient, keys: Keys, run_config: RunConfig, online_state: RunStateStore
) -> None:
    now = replace(run_config, initial_env_steps=14)
    online_state.initialise(now)
    redis_client.hset(keys.run, "online_grad_steps", 10)  # of the 10 that are owed after 5 initial steps
    assert bad(examine(redis_client, now, sound_run)) == ["limiter: 10 updates of 1 allowed"]
    log_resume(sound_run, initial_env_steps=(5, 14))
    findings = examine(redis_client, now, sound_run)
    assert bad(findings) == []
    expected = "ok   limiter: 10 updates of 10 allowed from 5 env steps on, as before a resume"
    assert text_of(findings, "limiter: 10") == expected
    redis_client.hset(keys.run, "online_grad_steps", 11)
    assert len(bad(examine(redis_client, now, sound_run))) == 1


def test_a_run_that_is_being_seeded_is_sound(
    redis_client: RedisClient, keys: Keys, run_config: RunConfig, state: RunStateStore,
    make_trajectory: MakeTrajectory, tmp_path: Path,
) -> None:  # fmt: skip
    trajectory = make_trajectory(actor_id=0)
    fields: dict[str, Field] = {"a": 0, "e": 1, "s": 0, "n": 5, "f": 0, "m": wire.encode_trajectory(trajectory)}
    redis_client.xadd(keys.seed, fields)
    findings = examine(redis_client, run_config, tmp_path / "checkpoints")
    assert bad(findings) == []
    assert text_of(findings, "seed data") == "ok   seed data: still being filled, 5 transitions counted so far; 0 bad"
    state.set_phase(Phase.PRETRAINING)
    assert bad(examine(redis_client, run_config, tmp_path / "checkpoints")) == [
        "seed data: the stream was never completely filled"
    ]
    state.set_phase(Phase.SEEDING)
    redis_client.xadd(keys.seed, {"m": b"hello"})
    assert len(bad(examine(redis_client, run_config, tmp_path / "checkpoints"))) == 1
