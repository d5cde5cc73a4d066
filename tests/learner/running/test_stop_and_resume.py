"""Stopped or killed in every phase, a learner goes on where it was."""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.checkpoint import CheckpointStore, Progress
from learner.learner import Learner
from learner.session import Session
from learner.startup import Experience, fill_mirror
from learner.update import LearnerState, make_state
from replay_service.config import ReplayConfig, RunConfig
from replay_service.errors import CheckpointError
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.reports import Evaluation, Reports
from replay_service.run_state import Phase, RunStateStore
from replay_service.seeding import SeedInfo, seed
from replay_service.weights_channel import WeightsChannel
from tests.damaging_client import DamagingClient
from tests.learner.running.driving import (
    CONFIG,
    CPU,
    DriveRun,
    StartLearner,
    WaitUntil,
    count_reports,
    evaluation_requests,
    offline_data,
    saved,
    wait_for_phase,
    weights_digest,
)


class TestStopAndResume:
    def test_in_seeding(
        self, state: RunStateStore, redis_client: RedisClient, keys: Keys, start_learner: StartLearner,
        tmp_path: Path, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        start_learner().stop()
        assert not (tmp_path / "checkpoints").exists()
        assert state.read().grad_steps == 0
        seed(redis_client, keys, offline_data())
        state.set_phase(Phase.PRETRAINING)
        start_learner()
        wait_for_phase(state, Phase.ONLINE, wait_until)

    def test_in_an_offline_phase_whose_data_redis_has_forgotten_in_part(
        self, seeded_state: RunStateStore, redis_client: DamagingClient, keys: Keys, start_learner: StartLearner,
        wait_until: WaitUntil, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        (newest, _fields), *_older = redis_client.xrevrange(keys.seed)
        redis_client.xdel(keys.seed, newest)
        caplog.set_level(logging.INFO, logger="learner")
        learner = start_learner()
        wait_until(lambda: "lost a part of the offline data" in caplog.text, "the learner to miss the data")
        assert seeded_state.read().grad_steps == 0
        redis_client.delete(keys.seed_info)
        seed(redis_client, keys, offline_data())
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        learner.stop()
        assert "mirror holds 60 seed and 0 online transitions" in caplog.text

    @pytest.mark.parametrize("stop_at", [0, 1, 17])
    def test_an_interrupted_offline_phase_ends_with_the_policy_of_an_uninterrupted_one(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, tmp_path: Path, wait_until: WaitUntil, stop_at: int,
    ) -> None:  # fmt: skip
        untouched_keys = Keys(f"{keys.run_id}-untouched")
        untouched_run = replace(run_config, run_id=untouched_keys.run_id)
        untouched = RunStateStore(redis_client, untouched_keys)
        untouched.initialise(untouched_run)
        seed(redis_client, untouched_keys, offline_data())
        start_learner(run=untouched_run, checkpoint_dir=tmp_path / "untouched")
        wait_for_phase(untouched, Phase.ONLINE, wait_until)

        start_learner(stop_at_grad_step=stop_at).join()
        if stop_at:
            progress, _ = saved(run_config, tmp_path / "checkpoints")
            assert (progress.phase, progress.offline_grad_steps) == (Phase.PRETRAINING, stop_at)
            assert seeded_state.read().phase is Phase.PRETRAINING
            assert seeded_state.read().policy_version == 0
        start_learner()
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        policies = [WeightsChannel(redis_client, k).fetch() for k in (keys, untouched_keys)]
        assert weights_digest(policies[0]) == weights_digest(policies[1])
        assert [p.grad_steps for p in policies if p] == [run_config.num_offline_steps] * 2

    def test_a_policy_that_sees_whitened_observations_is_published_for_plain_ones(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, start_learner: StartLearner,
        wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        config = replace(CONFIG, normalise_observations=True, policy_average_rate=0.5, evaluated_average_rate=0.1)
        start_learner(config=config, stop_at_grad_step=17).join()
        resumed = start_learner(config=config)
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        resumed.stop()
        observations = np.concatenate([episode.observations[:-1] for episode in offline_data().episodes])
        mean, std = observations.mean(axis=0), observations.std(axis=0, ddof=1) + 1e-3
        learnt = resumed.learner.session.state
        acting, judged = WeightsChannel(redis_client, keys).fetch(), evaluation_requests(redis_client, keys)[-1]
        assert acting is not None
        for published, policy in ((acting, learnt.average_policy), (judged, learnt.evaluated_average)):
            assert policy is not None
            weight, bias = (parameter.detach().numpy() for parameter in policy.layers[0].parameters())
            np.testing.assert_allclose(published.weights[0], weight / std, rtol=1e-4)
            np.testing.assert_allclose(published.biases[0], bias - (weight / std) @ mean, rtol=1e-4, atol=1e-6)

    def test_online(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, tmp_path: Path, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        first = start_learner(stop_at_grad_step=run_config.num_offline_steps + 37)
        driving = drive(run_config)
        driving.until_stopped(first)
        first.join()
        progress, digest = saved(run_config, tmp_path / "checkpoints")
        assert (progress.phase, progress.offline_grad_steps, progress.online_grad_steps) == (Phase.ONLINE, 30, 37)
        stopped = seeded_state.read()
        assert stopped.policy_version == progress.policy_version == 1 + 3

        start_learner(stop_at_grad_step=67).join()  # restores, publishes, and stops
        restored = WeightsChannel(redis_client, keys).fetch()
        assert restored is not None
        assert (restored.version, restored.grad_steps) == (stopped.policy_version + 1, 67)
        assert weights_digest(restored) == digest
        assert len(evaluation_requests(redis_client, keys)) == 2  # the untrained and the offline policy, once each
        assert replace(seeded_state.read(), policy_version=4) == replace(stopped, leased_steps=0)

        second = start_learner()
        driving.until_finished(second)
        second.stop()
        final = seeded_state.read()
        assert (final.grad_steps, final.online_grad_steps, final.env_steps) == (130, 100, 120)
        assert saved(run_config, tmp_path / "checkpoints")[0].phase is Phase.FINISHED

    def test_online_before_the_first_gradient_step(
        self, seeded_state: RunStateStore, run_config: RunConfig, start_learner: StartLearner, drive: DriveRun,
        wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        run = replace(run_config, num_offline_steps=0)
        seeded_state.initialise(run)
        first = start_learner(run=run)
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        first.stop()
        final = drive(run).until_finished(start_learner(run=run))
        assert final.grad_steps == final.online_grad_steps == 100

    def test_finished(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, tmp_path: Path, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        driving = drive(run_config)
        learner = start_learner()
        driving.until_finished(learner)
        learner.stop()
        before, digest = saved(run_config, tmp_path / "checkpoints")
        finished = seeded_state.read()

        reports = count_reports(redis_client, keys)
        again = start_learner()
        wait_until(lambda: count_reports(redis_client, keys) > reports, "the learner to be up again")
        again.stop()
        assert seeded_state.read() == finished
        assert saved(run_config, tmp_path / "checkpoints") == (before, digest)

        longer = replace(run_config, num_env_steps=150)
        seeded_state.initialise(longer)
        assert drive(longer).until(start_learner(run=longer), lambda s: s.grad_steps == 160).env_steps == 150
        wait_for_phase(seeded_state, Phase.FINISHED, wait_until)

    @pytest.mark.parametrize("lockstep", [False, True])
    def test_a_crash_between_the_last_checkpoint_and_its_publication(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil, lockstep: bool,
    ) -> None:  # fmt: skip
        run = replace(run_config, lockstep=lockstep, actors=1)
        seeded_state.initialise(run)
        learner = start_learner(run=run)
        version = drive(run).until_finished(learner).policy_version
        learner.stop()
        seeded_state.set_phase(Phase.ONLINE)  # as if the publication that enters `finished` had not happened
        if lockstep:  # a version names its turn, so its number must come again; else a newer one than any before
            redis_client.hset(keys.run, "policy_version", version - 1)
        start_learner(run=run)
        wait_for_phase(seeded_state, Phase.FINISHED, wait_until)
        *_, before, last = evaluation_requests(redis_client, keys)
        assert (last.version, last.grad_steps) == (version if lockstep else version + 1, 130)
        assert weights_digest(last) == weights_digest(before)

    @pytest.mark.parametrize("lockstep", [False, True])
    def test_a_crash_between_the_first_checkpoint_and_its_publication(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, tmp_path: Path, wait_until: WaitUntil, lockstep: bool,
    ) -> None:  # fmt: skip
        run = replace(run_config, lockstep=lockstep)
        seeded_state.initialise(run)
        state = make_state(CONFIG, run.spec, seed=5, device=CPU)
        store = CheckpointStore(tmp_path / "checkpoints", spec=run.spec, config=CONFIG)
        store.save(state, Progress(phase=Phase.ONLINE, offline_grad_steps=30))
        start_learner(run=run)
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        assert [(r.version, r.grad_steps) for r in evaluation_requests(redis_client, keys)] == [(1, 30)]

    def test_published_versions_without_checkpoints_are_refused(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, tmp_path: Path, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        first = start_learner()
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        first.stop()
        before = redis_client.get(keys.weights)
        with pytest.raises(CheckpointError, match=r"has published policy version 1 and .* its checkpoints are gone"):
            start_learner(checkpoint_dir=tmp_path / "elsewhere").join()
        assert redis_client.get(keys.weights) == before

    def test_checkpoints_that_vanish_before_the_first_version_are_missed_too(
        self, seeded_state: RunStateStore, start_learner: StartLearner, tmp_path: Path
    ) -> None:
        start_learner(stop_at_grad_step=20).join()
        state = seeded_state.read()
        assert (state.phase, state.policy_version, state.checkpointed_grad_steps) == (Phase.PRETRAINING, 0, 20)
        with pytest.raises(CheckpointError, match=r"checkpoint of 20 gradient steps, but its checkpoints are gone"):
            start_learner(checkpoint_dir=tmp_path / "elsewhere").join()

    def test_a_resumed_learner_samples_what_the_stream_retains(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        mirrors = []

        def fill_and_note(session: Session, progress: Progress, seeded: SeedInfo) -> Experience:
            experience = fill_mirror(session, progress, seeded)
            mirrors.append(experience.mirror)
            return experience

        monkeypatch.setattr("learner.learner.fill_mirror", fill_and_note)
        run = replace(run_config, replay=ReplayConfig(capacity=50, evict_seed=False))
        seeded_state.initialise(run)
        learner = start_learner(run=run)
        drive(run).until_finished(learner)
        learner.stop()
        reports = count_reports(redis_client, keys)
        again = start_learner(run=run)
        wait_until(lambda: count_reports(redis_client, keys) > reports, "the learner to be up again")
        again.stop()
        old, new = mirrors
        assert new.check_valid() is None
        assert (new.seed_size, new.online_size) == (60, seeded_state.read().retained_steps) == (60, 50)
        batches = [m.sample(500, torch.Generator().manual_seed(1), offline_fraction=None) for m in (old, new)]
        assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))

    def test_a_phase_whose_checkpoint_found_no_room_is_not_entered(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, start_learner: StartLearner,
        wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        def fill_the_disk(learner: Learner) -> None:
            def save(state: LearnerState, progress: Progress) -> Path:
                learner.session.stop.set()
                raise OSError(errno.ENOSPC, "No space left on device")

            learner.session.checkpoints.save = save  # type: ignore[method-assign]

        start_learner(prepare=fill_the_disk).join()
        stopped = seeded_state.read()
        assert (stopped.phase, stopped.policy_version, stopped.grad_steps) == (Phase.PRETRAINING, 0, 30)
        assert redis_client.get(keys.weights) is None
        start_learner()
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)


class TestAVersionThatRedisLost:
    def test_is_published_again_with_its_evaluation(
        self, seeded_state: RunStateStore, redis_client: DamagingClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        start_learner(config=replace(CONFIG, evaluated_average_rate=0.01))
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        (_untrained, asked) = evaluation_requests(redis_client, keys)
        with redis_client.pipeline(transaction=True) as pipe:  # as if Redis had died a moment after the publication
            pipe.hset(keys.run, mapping={"policy_version": 0, "phase": "pretraining", "evaluations_requested": 1})
            pipe.xtrim(keys.evaluation_requests, maxlen=0)
            pipe.execute()
        wait_until(lambda: seeded_state.read().policy_version == 1, "the version to come back")
        (again,) = evaluation_requests(redis_client, keys)
        assert (again.version, weights_digest(again)) == (1, weights_digest(asked))
        assert seeded_state.read().phase is Phase.ONLINE

    def test_an_earlier_one_that_was_to_be_judged_is_asked_for_again(
        self, seeded_state: RunStateStore, redis_client: DamagingClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        learner = start_learner()
        wait_for_phase(seeded_state, Phase.ONLINE, wait_until)
        (_untrained, asked) = evaluation_requests(redis_client, keys)
        newest = drive(run_config).until(learner, lambda state: state.policy_version >= 3)
        assert newest.phase is Phase.ONLINE

        def is_idle() -> bool:  # or it would be in the middle of a publication, which a Redis that dies cuts off
            state = seeded_state.read()
            published = 1 + state.online_grad_steps // CONFIG.publish_every_grad_steps
            return (state.online_grad_steps, state.policy_version) == (
                state.env_steps - state.initial_env_steps,
                published,
            )

        wait_until(is_idle, "the learner to have done all updates, and published")
        with redis_client.pipeline(transaction=True) as pipe:
            pipe.hset(keys.run, mapping={"policy_version": 0, "evaluations_requested": 1})
            pipe.xtrim(keys.evaluation_requests, maxlen=0)
            pipe.execute()
        wait_until(lambda: seeded_state.read().policy_version >= newest.policy_version, "the newest version again")
        (again,) = evaluation_requests(redis_client, keys)
        assert (again.version, weights_digest(again)) == (1, weights_digest(asked))
        assert seeded_state.read().evaluations_waiting == 2

    def test_the_untrained_one_is_asked_for_again(
        self, seeded_state: RunStateStore, redis_client: DamagingClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        learner = start_learner(run=replace(run_config, num_offline_steps=10**9))
        wait_until(lambda: seeded_state.read().grad_steps > 0, "the policy to be trained")
        (asked,) = evaluation_requests(redis_client, keys)
        with redis_client.pipeline(transaction=True) as pipe:
            pipe.hdel(keys.run, "evaluations_requested")
            pipe.xtrim(keys.evaluation_requests, maxlen=0)
            pipe.execute()
        wait_until(lambda: seeded_state.read().evaluations_requested == 1, "the request to come back")
        (again,) = evaluation_requests(redis_client, keys)
        assert (again.version, weights_digest(again)) == (0, weights_digest(asked))
        learner.stop()
        assert seeded_state.read().evaluations_requested == 1


def test_counters_that_redis_lost_come_back_also_after_the_end(
    seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
    start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
) -> None:  # fmt: skip
    drive(run_config).until_finished(start_learner())
    redis_client.hset(keys.run, mapping={"grad_steps": 120, "online_grad_steps": 90})
    wait_until(lambda: seeded_state.read().grad_steps == 130, "the counters to come back")
    assert seeded_state.read().online_grad_steps == 100


class TestExitWhenFinished:
    def test_it_ends_once_all_is_judged_and_what_was_dropped_is_settled(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        learner = start_learner(exit_when_finished=True)
        last = drive(run_config).until_finished(learner)
        redis_client.hincrby(keys.run, "evaluations_requested", 5)  # of a backlog that was trimmed
        reports = Reports(redis_client, keys)
        for version in (1, last.policy_version):
            assert learner.is_alive
            judged = Evaluation(version, 0, 0, 1.0, 1.0, 1.0, 0.0, 20.0, 1, 0.0, 0.0)
            reports.add_evaluation(judged, request_id=f"{version}-0")
        time.sleep(2.5)  # it looks once a second
        assert learner.is_alive
        ((newest_request, _),) = redis_client.xrevrange(keys.evaluation_requests, count=1)
        reports.settle_evaluations(read_to=newest_request.decode(), last_judged=None)
        wait_until(lambda: not learner.is_alive, "the learner to end by itself")
        learner.join()
        assert redis_client.hget(keys.run, "final_status") == b"finished"
