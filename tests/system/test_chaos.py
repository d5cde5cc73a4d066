"""`launcher chaos` kills each role of a run for real; nothing is lost, nothing doubles, the run goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.drill import ROLES
from learner.checkpoint import CheckpointStore
from learner.config import LearnerConfig
from learner.networks import PublicationStamp, export_policy
from learner.update import acting_policy, make_state
from replay_service.config_file import load_role_config, load_run_config
from replay_service.keys import Keys
from replay_service.policy_weights import PolicyWeights
from replay_service.process_identity import ProcessIdentity
from replay_service.run_state import Phase
from tests.system.conftest import Start
from tests.system.episodes import assert_every_step_was_stored
from tests.system.forgetful_redis import ForgetfulRedis, messages_sent_again
from tests.system.launching import SMALL_PEN, Launched, assert_sound, kill, launcher, role_pids, wait_until
from tests.system.published import first_policy_after

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]


def drill(run: Launched, role: str) -> dict[str, Any]:
    try:
        done = launcher("chaos", run.run_dir, "--kill", role, "--json", "--limit", "150s")
    except AssertionError as error:
        raise AssertionError(f"{role}: {error}\n{run.output}\n{run.logs()}") from error
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def victims(run: Launched, role: str) -> dict[str, ProcessIdentity]:
    """Whose process a drill of a role would kill, by the name that it gives."""
    processes = run.processes()
    if role not in ("actor", "ray-worker"):
        return {role: processes[role]}
    actors = {name: process for name, process in processes.items() if name.startswith("actor-")}
    if role == "actor":
        return actors
    found = {}
    for name, actor in actors.items():
        pool = actor.parent()
        worker = pool and pool.parent()
        assert worker is not None
        found[name] = worker
    return found


def test_every_role_is_killed_in_turn_and_the_run_goes_on_to_its_budget(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "100000", "--utd-ratio", "0.5")
    run.wait_until(lambda s: s.env_steps >= 600 and s.evaluations_done >= 1)
    for role in ROLES:
        before = victims(run, role)
        found = drill(run, role)
        killed = before[found["killed"]]
        assert (killed.pid, killed.is_alive) == (found["pid"], False), role
        assert found["back_after_s"] > 0
        assert found["audit"] == {"lost_steps": 0, "doubled_steps": 0, "unaccounted_steps": 0, "bad_findings": []}
        assert found["success_before"] is not None
    state = run.state()
    assert state.actor_restarts >= 2  # the actor alone, and those of the Ray worker
    assert state.learner_restarts == 1

    launcher("down", run.run_dir)
    assert run.wait() == 0
    budget = run.summary()["env_steps"] + 400
    resumed = start("--restart-behavior", "resume", "--num-env-steps", str(budget))
    assert resumed.wait() == 0, resumed.output + resumed.logs()
    summary = resumed.summary()
    assert summary["status"] == "finished"
    assert summary["env_steps"] == budget
    assert summary["unaccounted_steps"] == 0
    assert summary["evaluations_missed"] == 0
    assert_sound(run.run_dir)


def test_what_redis_forgets_in_a_crash_is_sent_again_and_the_budget_is_met_exactly(
    start: Start, tmp_path: Path
) -> None:
    redis = ForgetfulRedis(tmp_path)
    # What is cut off is the last second of a quick machine, and more of a busy one.
    slow = ("--actor.resend-window-s", "60")
    run = start(*SMALL_PEN, *slow, "--num-env-steps", "4000", "--replay.server-path", str(redis.program))
    run.wait_until(lambda s: s.env_steps >= 1_000)
    keys = Keys(load_run_config(run.run_dir / "config.toml").run_id)
    redis.forget(150_000)  # two messages and more of 200 steps
    kill(run.processes()["redis"].pid)
    assert run.wait() == 0, run.output + run.logs()
    assert redis.has_forgotten
    forgotten = redis.forgotten_messages(keys.online)
    assert forgotten >= 2
    # All but what was still unanswered, at most one message an actor: that is sent until it is, which is nothing new.
    assert messages_sent_again(run.run_dir) >= max(1, forgotten - 2)
    assert_every_step_was_stored(run.run_dir)
    summary = run.summary()
    assert (summary["status"], summary["env_steps"]) == ("finished", 4000)
    assert (summary["unaccounted_steps"], summary["evaluations_missed"]) == (0, 0)
    versions = [e["policy_version"] for e in summary["evaluations"]]
    assert len(versions) == 6  # untrained, offline, one each 1,000 steps
    assert versions == sorted(set(versions))
    assert_sound(run.run_dir)


def checkpointed_policy(run_dir: Path, version: int) -> dict[int, PolicyWeights]:
    """What each checkpoint of a run would publish, by its gradient steps."""
    config = load_role_config(run_dir / "config.toml", "learner", LearnerConfig)
    spec = load_run_config(run_dir / "config.toml").spec
    found = {}
    for folder in (run_dir / "checkpoints").glob("step-*"):
        steps = int(folder.name.partition("-")[2])
        state = make_state(config, spec, seed=1, device=torch.device("cpu"))
        alone = run_dir / "alone" / folder.name
        alone.mkdir(parents=True)
        (alone / folder.name).symlink_to(folder.resolve())
        assert CheckpointStore(alone, spec=spec, config=config).restore(state) is not None
        found[steps] = export_policy(acting_policy(state), PublicationStamp(version, steps, 0, time.time()))
    return found


def arrays_of(policy: PolicyWeights) -> list[bytes]:
    return [array.tobytes() for array in (*policy.weights, *policy.biases, policy.log_std)]


def test_a_killed_learner_publishes_the_policy_of_its_checkpoint(start: Start) -> None:
    options = ("--learner.keep-checkpoints", "100", "--learner.publish-every-grad-steps", "50")
    run = start(*SMALL_PEN, *options, "--num-env-steps", "100000")
    run.wait_until(lambda s: s.phase is Phase.ONLINE and s.grad_steps > 300)
    learner = run.processes()["learner"]
    assert [learner.pid] == role_pids(run.run_dir, "learner")
    assert learner.kill()
    wait_until(lambda: not learner.is_alive, "the learner to be gone", pause_s=0.001)
    last = run.state().policy_version
    published = first_policy_after(run, last)
    run.process.send_signal(signal.SIGINT)
    assert published.version == last + 1
    saved = checkpointed_policy(run.run_dir, published.version)
    assert published.grad_steps in saved
    assert arrays_of(published) == arrays_of(saved[published.grad_steps])
    assert run.wait() == 0


def test_what_cannot_be_drilled_is_told_in_one_line(start: Start, tmp_path: Path) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "600")
    assert run.wait() == 0, run.output
    for arguments, expected in (
        ((run.run_dir, "--kill", "learner"), "is not running"),
        ((tmp_path / "nowhere", "--kill", "learner"), "holds no run"),
        ((run.run_dir, "--kill", "gardener"), "gardener"),
        ((run.run_dir, "--kill", "actor", "--every", "soon"), "expected a time like 30s"),
        ((run.run_dir, "--kill", "actor", "--every", "10s"), "--every: 61 kills within 600 s"),
        ((run.run_dir, "--kill", "actor", "--times", "3"), "beside --every"),
    ):
        done = launcher("chaos", *arguments, code=2)
        assert expected in done.stderr + done.stdout
