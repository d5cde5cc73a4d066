"""`launcher up` from the shell: a whole run, its records, crashes, Ctrl-C, resume, down."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest

from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunStateStore
from tests.system.conftest import Start
from tests.system.episodes import assert_every_step_was_stored
from tests.system.launching import (
    SMALL_PEN,
    contents_of,
    kill,
    launcher,
    processes_of,
    role_pids,
    wait_until,
    wait_until_gone,
)
from tests.system.published import first_policy_after, layer_hashes

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_from_the_shipped_data_to_the_end_of_its_budget(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "1500")
    assert run.wait() == 0, run.output + run.logs()

    summary = run.summary()
    assert summary["status"] == "finished"
    assert summary["phase"] == "finished"
    assert summary["env_steps"] == 1500
    assert summary["grad_steps"] == 150 + (1500 - 400)
    assert summary["utd_ratio"] == 1.0
    assert summary["unaccounted_steps"] == 0
    assert summary["duplicates_refused"] == summary["quarantined"] == 0
    assert summary["actor_restarts"] == summary["learner_restarts"] == 0
    assert summary["seed_steps"] == 25 * 200

    evaluations = summary["evaluations"]
    assert [e["policy_version"] for e in evaluations[:2]] == [0, 1]
    assert [e["env_steps"] for e in evaluations[:2]] == [0, 0]
    assert evaluations[-1]["env_steps"] == 1500
    assert all(0 <= e["success_final"] <= e["success_any"] <= 1 for e in evaluations)
    with (run.run_dir / "evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["policy_version"]) for row in rows] == [e["policy_version"] for e in evaluations]
    assert {row["env"] for row in rows} == {"pen"}

    for name in (
        "config.toml",
        "checkpoints",
        "logs/learner.log",
        "logs/replay.log",
        "logs/actor-0.log",
        "tensorboard",
    ):
        assert (run.run_dir / name).exists(), name
    assert "finished: 1,500 env steps" in run.output
    assert str(run.run_dir) in run.output
    assert wait_until_gone(run.run_dir) == {}

    # The same directory again, without a word about what to do with the run in it.
    again = start(*SMALL_PEN)
    assert again.wait() == 2
    assert "holds a run already" in again.output
    assert run.summary() == summary


def test_no_secret_is_where_others_can_read_it(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000")
    run.wait_until(lambda state: state.env_steps > 0)
    password = RedisEndpoint.load(run.run_dir / "redis" / "connection.json").password
    assert len(password) > 20
    for line in processes_of(run.run_dir).values():
        assert password not in line
    redis_dir = run.run_dir / "redis"
    assert redis_dir.stat().st_mode & 0o077 == 0
    for path, content in contents_of(run.run_dir):
        if redis_dir not in path.parents:
            assert password.encode() not in content, path
    assert password not in run.output


def hash_of_newest_checkpoint(run_dir: Path) -> dict[str, str]:
    newest = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    hashes: dict[str, str] = json.loads((newest / "manifest.json").read_text())["sha256"]
    return hashes


def test_crashes_are_mended_and_the_run_is_resumed_after_ctrl_c(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000", "--utd-ratio", "0.5")
    run.wait_until(lambda state: state.env_steps >= 600)

    # An actor and the learner are killed for real; both come back and the run goes on.
    pool, *actors = role_pids(run.run_dir, "actors actor")
    kill(actors[0])
    (learner,) = role_pids(run.run_dir, "learner")
    kill(learner)
    before = run.state()
    mended = run.wait_until(
        lambda s: (
            (s.actor_restarts, s.learner_restarts) == (1, 1)  # counted before the new ones work
            and s.grad_steps > 300
            and s.policy_version > before.policy_version
        )
    )
    assert pool in role_pids(run.run_dir, "actors actor")
    assert mended.env_steps >= before.env_steps

    # Status from another terminal.
    assert "running, launcher process" in launcher("status", run.run_dir).stdout

    # Ctrl-C once: an orderly end that can be resumed.
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait() == 0, run.output
    assert f"--run-dir {run.run_dir} --restart-behavior resume" in run.output.replace("\n", " ")
    assert wait_until_gone(run.run_dir) == {}
    stopped = run.summary()
    assert stopped["status"] == "stopped"
    assert stopped["unaccounted_steps"] == 0
    saved = hash_of_newest_checkpoint(run.run_dir)

    budget = (stopped["env_steps"] // 1000 + 2) * 1000
    resumed = start("--restart-behavior", "resume", "--num-env-steps", str(budget))
    published = first_policy_after(resumed, stopped["policy_version"])
    assert (published.version, published.grad_steps) == (stopped["policy_version"] + 1, stopped["grad_steps"])
    acting = {hashed for name, hashed in saved.items() if name.startswith("average_policy.layers.")}
    assert layer_hashes(published) == acting
    state = resumed.state()
    assert state.env_steps >= stopped["env_steps"]
    assert state.grad_steps >= stopped["grad_steps"]
    restored = (resumed.run_dir / "logs" / "learner.log").read_text()
    assert f"restored {resumed.run_dir}/checkpoints/step-{stopped['grad_steps']:012d}" in restored
    assert resumed.wait() == 0, resumed.output + resumed.logs()
    changed = "resumed with other settings than before: num_env_steps ("
    assert changed in resumed.output.replace("\n", " ")
    assert changed in (resumed.run_dir / "logs" / "launcher.log").read_text()
    summary = resumed.summary()
    assert summary["status"] == "finished"
    assert summary["env_steps"] == budget
    assert summary["grad_steps"] == 150 + (budget - 400) // 2
    assert summary["unaccounted_steps"] == 0
    assert summary["actor_restarts"] == 1
    assert summary["learner_restarts"] == 1
    assert len([e for e in summary["evaluations"] if e["env_steps"] == 0]) == 2


def test_redis_and_its_keeper_killed_lose_nothing_that_was_acknowledged(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "6000", "--utd-ratio", "0.5")
    run.wait_until(lambda state: state.env_steps >= 800)
    (replay,) = role_pids(run.run_dir, "replay_service")
    before = run.state()
    kill(replay)  # the embedded Redis dies with it
    time.sleep(1.0)
    after = run.wait_until(lambda s: s.env_steps > before.env_steps and s.policy_version >= before.policy_version)
    assert after.phase is Phase.ONLINE
    assert after.seed_steps == before.seed_steps
    assert run.wait() == 0, run.output + run.logs()
    summary = run.summary()
    assert summary["env_steps"] == 6000
    assert summary["unaccounted_steps"] == 0
    assert summary["seed_steps"] == 25 * 200
    assert_every_step_was_stored(run.run_dir)


def test_data_that_vanished_from_redis_are_an_error_not_a_fresh_start(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "800")
    assert run.wait() == 0, run.output
    for path in (run.run_dir / "redis" / "appendonlydir").iterdir():
        path.unlink()
    again = start("--restart-behavior", "resume", "--num-env-steps", "2000")
    assert again.wait() == 2, again.output
    assert "Redis no longer has its data" in again.output
    assert "num_env_steps = 800" in (run.run_dir / "config.toml").read_text(encoding="utf-8")  # nothing was changed


def test_ctrl_c_twice_ends_at_once_and_leaves_a_run_that_resumes(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "1200")
    run.wait_until(lambda state: state.env_steps > 0)
    os.kill(run.process.pid, signal.SIGINT)
    wait_until(lambda: "Ctrl-C again ends at once" in run.output, "the launcher to say so", pause_s=0.01)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait() == 130
    assert wait_until_gone(run.run_dir) == {}
    resumed = start("--restart-behavior", "resume")
    assert resumed.wait() == 0, resumed.output + resumed.logs()
    assert resumed.summary()["env_steps"] == 1200


def test_any_gymnasium_environment_without_data(start: Start) -> None:
    run = start(
        "--env", "Pendulum-v1", "--actors", "1", "--num-env-steps", "600", "--initial-env-steps", "200",
        "--rollout-length", "50", "--learner.batch-size", "32", "--learner.policy-hidden-sizes", "16",
        "--learner.critic-hidden-sizes", "16", "--evaluator.episodes", "2", "--device", "cpu",
    )  # fmt: skip
    assert run.wait() == 0, run.output + run.logs()
    summary = run.summary()
    assert summary["preset"] == "locomotion"
    assert summary["env_steps"] == 600
    assert summary["grad_steps"] == 400
    assert summary["evaluations"][-1]["success_any"] is None
    assert summary["evaluations"][-1]["episode_return"] < 0


def test_a_redis_of_the_users_own_with_a_password(start: Start, tmp_path: Path) -> None:
    from replay_service.redis_server import EmbeddedRedis, find_server

    server = EmbeddedRedis.start(tmp_path / "redis", server=find_server(), max_memory_mb=256)
    try:
        url, password = server.endpoint.url, server.endpoint.password
        wrong = start(*SMALL_PEN, "--redis-url", url, environment={"AWAC_REDIS_PASSWORD": "wrong"})
        assert wrong.wait() == 2
        assert "refused the credentials" in wrong.output
        assert not (wrong.run_dir / "config.toml").exists()

        run = start(
            *SMALL_PEN,
            "--num-env-steps",
            "600",
            "--redis-url",
            url,
            environment={"AWAC_REDIS_PASSWORD": password, "AWAC_REDIS_URL": "redis://127.0.0.1:1"},
        )
        assert run.wait() == 0, run.output + run.logs()
        run_id = run.summary()["run_id"]
        client = connect(server.endpoint)
        state = RunStateStore(client, Keys(run_id)).read()
        assert state.env_steps == 600
        assert sum(actor.stored_steps for actor in Reports(client, Keys(run_id)).actors()) == 600

        again = start(
            *SMALL_PEN, "--redis-url", url, "--run-id", run_id, run_dir=tmp_path / "again",
            environment={"AWAC_REDIS_PASSWORD": password},
        )  # fmt: skip
        assert again.wait() == 2
        assert f"Redis holds a run '{run_id}' already" in again.output
        assert not again.run_dir.exists()
        assert RunStateStore(client, Keys(run_id)).read() == state
        client.close()
    finally:
        server.stop()
