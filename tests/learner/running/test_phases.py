"""The learner's process through the phases of a run, against a real Redis."""

from __future__ import annotations

import math
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.checkpoint import Progress
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.mirror import TransitionBatch
from learner.update import LearnerState, UpdateMetrics, gradient_step
from replay_service.config import RunConfig
from replay_service.keys import Keys
from replay_service.policy_weights import PolicyWeights
from replay_service.redis_client import RedisClient
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunStateStore
from replay_service.seeding import seed
from replay_service.weights_channel import WeightsChannel
from tests.conftest import PATIENCE_S
from tests.learner.running.driving import (
    CONFIG,
    SEED_REWARD,
    DriveRun,
    StartLearner,
    WaitUntil,
    evaluation_requests,
    offline_data,
    weights_digest,
)


class TestPhases:
    @pytest.mark.parametrize("utd_ratio", [1.0, 0.3, 2.5])
    def test_a_run_from_seeding_to_the_end_of_its_budget(
        self,
        state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        run_config: RunConfig,
        start_learner: StartLearner,
        drive: DriveRun,
        utd_ratio: float,
    ) -> None:
        run = replace(run_config, utd_ratio=utd_ratio)
        state.initialise(run)
        learner = start_learner(run=run)
        driving = drive(run)
        assert driving.actor.request() == 0  # nobody acts before the offline phase is done
        assert state.read().policy_version == 0

        seed(redis_client, keys, offline_data())
        state.set_phase(Phase.PRETRAINING)
        online = driving.until(learner, lambda s: s.env_steps > 0)
        assert online.phase is Phase.ONLINE
        assert online.grad_steps >= run.num_offline_steps
        assert online.policy_version >= 1

        finished = driving.until_finished(learner)
        learner.stop()
        owed = math.floor(utd_ratio * (run.num_env_steps - run.initial_env_steps))
        final = state.read()
        assert (final.env_steps, final.online_grad_steps) == (run.num_env_steps, owed)
        assert final.grad_steps == run.num_offline_steps + owed
        assert finished.policy_version == final.policy_version == 1 + owed // 10 + 1  # offline, each ten steps, last

        requests = evaluation_requests(redis_client, keys)
        assert [r.version for r in requests] == [0, 1, final.policy_version]
        assert [r.grad_steps for r in requests] == [0, run.num_offline_steps, final.grad_steps]
        assert [r.env_steps for r in requests] == [0, 0, run.num_env_steps]
        assert weights_digest(WeightsChannel(redis_client, keys).fetch()) == weights_digest(requests[-1])
        assert len({weights_digest(r) for r in requests}) == 3

    def test_the_evaluator_gets_the_average_that_is_meant_for_it_and_actors_get_theirs(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun,
    ) -> None:  # fmt: skip
        learner = start_learner(config=replace(CONFIG, evaluated_average_rate=0.01))
        drive(run_config).until_finished(learner)
        last, newest = evaluation_requests(redis_client, keys)[-1], WeightsChannel(redis_client, keys).fetch()
        assert newest is not None
        learnt = learner.learner.session.state
        assert (last.version, last.grad_steps, last.env_steps) == (newest.version, newest.grad_steps, newest.env_steps)
        for weights, policy in ((last, learnt.evaluated_average), (newest, learnt.policy)):
            assert policy is not None
            layers = [layer for layer in policy.layers if isinstance(layer, torch.nn.Linear)]
            for found, layer in zip(weights.weights, layers, strict=True):
                np.testing.assert_array_equal(found, layer.weight.detach().numpy())
        assert weights_digest(last) != weights_digest(newest)

    @pytest.mark.parametrize(
        ("utd_ratio", "between"),
        # (gradient steps, 30 of them offline; environment steps, 20 of them before the first update)
        [(0.3, [(40, 54), (50, 87)]), (1.0, [(50, 40), (90, 80)]), (2.5, [(80, 40), (180, 80)])],
    )
    def test_versions_between_are_evaluated_when_their_environment_steps_have_come(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, utd_ratio: float, between: list[tuple[int, int]],
    ) -> None:  # fmt: skip
        run = replace(run_config, utd_ratio=utd_ratio)
        seeded_state.initialise(run)
        config = replace(CONFIG, evaluate_every_env_steps=40, evaluate_untrained=False)
        learner = start_learner(run=run, config=config)
        drive(run).until_finished(learner)
        requests = evaluation_requests(redis_client, keys)
        assert requests[0].grad_steps == run.num_offline_steps
        assert requests[-1].env_steps == run.num_env_steps
        # However far the actors are ahead, a version is judged for the steps that its updates are owed to.
        assert [(r.grad_steps, r.env_steps) for r in requests[1:-1]] == between

    def test_without_offline_data_the_offline_phase_is_skipped(
        self, state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun,
    ) -> None:  # fmt: skip
        seed(redis_client, keys, None)
        state.set_phase(Phase.PRETRAINING)
        run = replace(run_config, initial_env_steps=0)
        state.initialise(run)
        learner = start_learner(run=run)
        finished = drive(run).until_finished(learner)
        assert finished.grad_steps == finished.online_grad_steps == run.num_env_steps

    def test_a_checkpoint_comes_before_each_publication_that_begins_a_phase(
        self, seeded_state: RunStateStore, run_config: RunConfig, start_learner: StartLearner, drive: DriveRun
    ) -> None:
        tape: list[tuple[object, ...]] = []

        def record(learner: Learner) -> None:
            plain_save, plain_publish = learner.session.checkpoints.save, learner.session.publisher._channel.publish

            def save(state: LearnerState, progress: Progress) -> Path:
                tape.append(("checkpoint", progress.phase, progress.grad_steps))
                return plain_save(state, progress)

            def publish(
                policy: PolicyWeights,
                *,
                evaluated: PolicyWeights | None = None,
                asked_before: PolicyWeights | None = None,
                enter: Phase | None = None,
            ) -> None:
                if enter is not None:
                    counters = seeded_state.read()
                    judged = None if evaluated is None else evaluated.version - policy.version
                    tape.append(("publish", enter, counters.grad_steps, judged))
                plain_publish(policy, evaluated=evaluated, asked_before=asked_before, enter=enter)

            learner.session.checkpoints.save = save  # type: ignore[method-assign]
            learner.session.publisher._channel.publish = publish  # type: ignore[method-assign]

        drive(run_config).until_finished(start_learner(prepare=record))
        assert tape == [
            ("checkpoint", Phase.ONLINE, 30),
            ("publish", Phase.ONLINE, 30, 0),  # the counters in Redis, too, are there before the phase
            ("checkpoint", Phase.FINISHED, 130),
            ("publish", Phase.FINISHED, 130, 0),
        ]

    def test_each_phase_has_its_batch_size_and_online_batches_their_offline_fraction(
        self, seeded_state: RunStateStore, run_config: RunConfig, start_learner: StartLearner, drive: DriveRun,
        monkeypatch: pytest.MonkeyPatch, redis_client: RedisClient, keys: Keys,
    ) -> None:  # fmt: skip
        batches: list[tuple[int, int]] = []

        def step(state: LearnerState, batch: TransitionBatch, config: LearnerConfig) -> UpdateMetrics:
            batches.append((len(batch.rewards), int((batch.rewards == SEED_REWARD).sum())))
            return gradient_step(state, batch, config)

        monkeypatch.setattr("learner.gradient_steps.gradient_step", step)
        drive(run_config).until_finished(start_learner(config=replace(CONFIG, offline_fraction=0.25)))
        assert batches == [(8, 8)] * 30 + [(16, 4)] * 100
        shares = [report.metrics["offline_ratio"] for _id, report in Reports(redis_client, keys).learner_reports()]
        assert shares[-1] == 0.25

    def test_metrics_and_reports_tell_what_was_done(
        self, seeded_state: RunStateStore, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
        start_learner: StartLearner, drive: DriveRun, wait_until: WaitUntil,
    ) -> None:  # fmt: skip
        learner = start_learner()
        finished = drive(run_config).until_finished(learner)
        address = seeded_state.endpoints()["learner"]

        def scraped() -> list[str]:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_S) as reply:
                return list(reply.read().decode().splitlines())

        last = [
            f"awac_learner_policy_version {float(finished.policy_version)}",
            'awac_learner_update{quantity="unlearned_critics"} 0.0',
        ]
        wait_until(lambda: set(last) <= set(scraped()), " and ".join(last))
        lines = scraped()
        assert "awac_learner_grad_steps_total 130.0" in lines
        assert "awac_learner_samples_total 1840.0" in lines  # 30 x 8 + 100 x 16
        assert "awac_learner_ingested_steps_total 120.0" in lines
        learner.stop()
        assert seeded_state.endpoints() == {}
        report = Reports(redis_client, keys).latest_learner_report()
        assert report is not None
        assert (report.grad_steps, report.env_steps) == (130, 120)
        assert (report.metrics["seed_transitions"], report.metrics["online_transitions"]) == (60.0, 120.0)
        assert report.metrics["offline_ratio"] == pytest.approx(60 / 180)
        assert report.metrics["unlearned_critics"] == 0.0
