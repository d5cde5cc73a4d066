"""What a learner does with messages in the stream that are not of its run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis

from learner.learner import Learner
from replay_service.config import RunConfig
from replay_service.errors import USER_ERROR_EXIT_CODE, DatasetError, LockstepBroken
from replay_service.keys import Keys
from replay_service.process import run_role
from replay_service.records import unaccounted_steps
from replay_service.redis_client import RedisClient
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunStateStore
from replay_service.trajectory_stream import BadEntry
from tests.learner.running.driving import (
    DriveRun,
    StartLearner,
    SyntheticActor,
    WaitUntil,
    wait_for_phase,
)


class TestBadMessages:
    def test_are_quarantined_and_the_run_goes_on(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        learner = start_learner()
        driving = drive(run_config)
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        driving.actor.append(driving.actor.request(), broken=True)
        redis_client.xadd(keys.online, {"m": b"\x93garbage", "a": "0", "e": "1"})
        redis_client.xadd(keys.online, {"nothing": "at all"})
        driving.until_finished(learner)
        learner.stop()
        final = seeded_state.read()
        assert (final.quarantined_messages, final.quarantined_steps) == (3, 10)
        assert (final.env_steps, final.online_grad_steps) == (120, 100)
        assert unaccounted_steps(final, Reports(redis_client, keys).actors()) == 0
        reasons = [fields[b"reason"].decode() for _, fields in redis_client.xrange(keys.quarantine)]
        assert reasons[0] == "rewards: expected finite values, got NaN or infinity"

    def test_that_come_last_do_not_end_the_run_early(
        self, seeded_state: RunStateStore, redis_client: RedisClient, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The worst moment: after the learner has read the stream, and before it reads the number of stored steps."""
        monkeypatch.setattr("learner.upkeep._SYNC_EVERY_S", 1e9)  # no chance look at the stream between updates
        driving = drive(run_config)
        late = SyntheticActor(redis_client, run_config, actor_id=1)  # the learner's thread plays it, no other does
        arrived: list[int] = []

        def let_one_arrive_late(learner: Learner) -> None:
            plain_hget = learner.session.client.hget

            def hget(name: str, key: str) -> bytes | None:
                if not arrived and int(plain_hget(name, "env_steps") or 0) == run_config.num_env_steps - 10:
                    lease = late.request()
                    if lease:
                        arrived.append(lease)  # before it is stored, that the other actor stops at once
                        late.append(lease, broken=True)
                return plain_hget(name, key)

            learner.session.client.hget = hget  # type: ignore[method-assign]

        learner = start_learner(prepare=let_one_arrive_late)
        driving.until(learner, lambda s: s.env_steps == run_config.num_env_steps - 10 or bool(arrived))
        wait_until(lambda: bool(arrived), "the learner to ask for the number of stored steps")

        def has_caught_up() -> bool:
            state = seeded_state.read()
            return state.quarantined_steps == 10 and state.online_grad_steps >= 90

        wait_until(has_caught_up, "the updates for 110 good steps")
        waiting = seeded_state.read()
        assert (waiting.phase, waiting.env_steps, waiting.online_grad_steps) == (Phase.ONLINE, 110, 90)
        driving.until_finished(learner)
        learner.stop()
        final = seeded_state.read()
        assert arrived == [10]
        assert final.quarantined_steps == 10
        assert (final.env_steps, final.online_grad_steps) == (120, 100)

    def test_are_not_forgotten_when_redis_fails_while_they_are_moved(
        self, seeded_state: RunStateStore, redis_client: RedisClient, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        failures: list[str] = []

        def fail_once(learner: Learner) -> None:
            plain_put = learner.session.quarantine.put

            def put(bad: BadEntry) -> int:
                if not failures:
                    failures.append(bad.reason)
                    raise redis.exceptions.ConnectionError("reset by peer")
                return plain_put(bad)

            learner.session.quarantine.put = put  # type: ignore[method-assign]

        learner = start_learner(prepare=fail_once)
        driving = drive(run_config)
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        driving.actor.append(driving.actor.request(), broken=True)
        driving.until_finished(learner)
        assert len(failures) == 1
        final = seeded_state.read()
        assert (final.quarantined_messages, final.env_steps) == (1, 120)

    @pytest.mark.parametrize("answer", ["comes", "is lost"])
    def test_in_lock_step_end_the_run_and_whoever_would_resume_it(
        self, seeded_state: RunStateStore, run_config: RunConfig, start_learner: StartLearner, drive: DriveRun,
        wait_until: WaitUntil, answer: str,
    ) -> None:  # fmt: skip
        answers: list[int] = []

        def lose_the_first(learner: Learner) -> None:
            plain_put = learner.session.quarantine.put

            def put(bad: BadEntry) -> int:
                answers.append(plain_put(bad))
                if len(answers) == 1:
                    raise redis.exceptions.TimeoutError("no answer")
                return answers[-1]

            if answer == "is lost":
                learner.session.quarantine.put = put  # type: ignore[method-assign]

        run = replace(run_config, lockstep=True, actors=1)
        seeded_state.initialise(run)
        learner, actor = start_learner(run=run, prepare=lose_the_first), drive(run).actor
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        actor.append(actor.request(), broken=True)
        with pytest.raises(LockstepBroken, match=r"10 env steps are in quarantine \(rewards: .*; start over with"):
            learner.join()
        assert answers == ([] if answer == "comes" else [10, 10])
        again = start_learner(run=run)

        def resume() -> int:
            again.join()
            return 0

        with pytest.raises(LockstepBroken, match=r"10 env steps are in quarantine .*; start over with"):
            resume()
        assert run_role(resume) == USER_ERROR_EXIT_CODE

    def test_in_the_seed_stream_end_the_learner(
        self, state: RunStateStore, redis_client: RedisClient, keys: Keys, start_learner: StartLearner
    ) -> None:
        redis_client.xadd(keys.seed, {"m": b"junk", "a": "-1", "e": "0", "s": "0", "n": "5", "f": "0"})
        redis_client.hset(keys.seed_info, mapping={"fingerprint": "x", "steps": 5, "episodes": 1, "complete": 1})
        with pytest.raises(DatasetError, match=r"seed entry .* does not fit the run"):
            start_learner().join()
