"""The evaluator against a real Redis: every request once, in order, over restarts and damage."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from actors.config import EvaluatorConfig
from actors.environment import make_environment
from actors.evaluation import Score, evaluate
from actors.evaluator import Evaluator
from actors.policy import NumpyPolicy
from replay_service.config import RunConfig
from replay_service.connection import RedisEndpoint
from replay_service.errors import SpecMismatch
from replay_service.keys import Keys
from replay_service.policy_weights import PolicyWeights
from replay_service.process import StopSignal
from replay_service.redis_client import RedisClient
from replay_service.reports import Evaluation, Reports
from replay_service.run_state import RunStateStore
from replay_service.weights_channel import EVALUATION_BACKLOG, WeightsChannel
from tests.conftest import PATIENCE_S
from tests.damaging_client import DamagingClient

MakePolicyWeights = Callable[..., PolicyWeights]
WaitUntil = Callable[[Callable[[], bool], str], None]

CONFIG = EvaluatorConfig(episodes=3, seed=500)


class RunningEvaluator:
    """An evaluator in a thread, with a stop signal of its own."""

    def __init__(self, run: RunConfig, config: EvaluatorConfig, endpoint: RedisEndpoint) -> None:
        self.stop_signal = StopSignal()
        self._evaluator = Evaluator(run, config, endpoint, stop=self.stop_signal)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._evaluator.run()
        except Exception as error:
            self._error = error

    def join(self) -> None:
        """Wait for its end; raises what it raised."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the evaluator did not end"
        self._evaluator._state._client.close()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self.stop_signal.set()
        self.join()


StartEvaluator = Callable[..., RunningEvaluator]


@pytest.fixture
def start_evaluator(
    run_config: RunConfig, redis_endpoint: RedisEndpoint, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StartEvaluator]:
    """Start evaluators of the run; none outlives the test."""
    started: list[RunningEvaluator] = []

    def start(run: RunConfig = run_config, config: EvaluatorConfig = CONFIG) -> RunningEvaluator:
        started.append(RunningEvaluator(run, config, redis_endpoint))
        return started[-1]

    monkeypatch.setattr("actors.evaluator._BLOCK_MS", 20)  # it looks for a stop between two waits
    yield start
    for evaluator in started:
        evaluator.stop_signal.set()
        evaluator._thread.join(PATIENCE_S)


@pytest.fixture
def channel(redis_client: RedisClient, keys: Keys) -> WeightsChannel:
    return WeightsChannel(redis_client, keys)


@pytest.fixture
def evaluations(redis_client: RedisClient, keys: Keys) -> Callable[[], list[Evaluation]]:
    """All results, oldest first."""
    reports = Reports(redis_client, keys)
    return lambda: [evaluation for _, evaluation in reports.evaluations()]


def test_judges_every_request_in_order_with_the_mean_action_on_the_fixed_seeds(
    start_evaluator: StartEvaluator, state: RunStateStore, run_config: RunConfig, channel: WeightsChannel,
    make_policy_weights: MakePolicyWeights, evaluations: Callable[[], list[Evaluation]], wait_until: WaitUntil,
) -> None:  # fmt: skip
    policies = {version: make_policy_weights(version, env_steps=100 * version) for version in (0, 1, 5)}
    channel.request_evaluation(policies[0])
    channel.publish(make_policy_weights(3))  # nobody asks for this one
    channel.publish(policies[5], evaluated=policies[5])
    evaluator = start_evaluator()
    wait_until(lambda: len(evaluations()) == 2, "two results")
    channel.request_evaluation(policies[1])
    wait_until(lambda: len(evaluations()) == 3, "a request that came later")

    address = state.endpoints()["evaluator"]
    wait_until(lambda: "awac_evaluations_total 3.0" in scrape(address), "the metrics")
    wait_until(lambda: "awac_evaluation_policy_version 1.0" in scrape(address), "the version that was judged last")
    evaluator.stop()
    assert state.endpoints() == {}
    assert state.read().evaluations_requested == state.read().evaluations_done == 3

    environment = make_environment("Pendulum-v1", max_episode_steps=20)
    found = evaluations()
    assert [e.policy_version for e in found] == [0, 5, 1]
    for result in found:
        score = evaluate(environment, NumpyPolicy(policies[result.policy_version]), episodes=3, first_seed=500)
        assert score is not None
        assert (result.episode_return, result.episode_length) == (score.episode_return, 20.0)
        assert (result.success_any, result.success_final, result.success_fraction) == (None, None, None)
        assert (result.env_steps, result.grad_steps) == (100 * result.policy_version, 10 * result.policy_version)
        assert result.episodes == 3
    environment.close()


def scrape(address: str) -> list[str]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_S) as reply:
        return list(reply.read().decode().splitlines())


def test_a_restarted_one_goes_on_behind_the_last_result(
    start_evaluator: StartEvaluator, state: RunStateStore, channel: WeightsChannel,
    make_policy_weights: MakePolicyWeights, evaluations: Callable[[], list[Evaluation]], wait_until: WaitUntil,
) -> None:  # fmt: skip
    for version in (1, 2):
        channel.publish(make_policy_weights(version), evaluated=make_policy_weights(version))
    first = start_evaluator()
    wait_until(lambda: len(evaluations()) == 2, "two results")
    first.stop()
    channel.publish(make_policy_weights(3), evaluated=make_policy_weights(3))
    start_evaluator()
    wait_until(lambda: len(evaluations()) == 3, "the third result")
    assert [e.policy_version for e in evaluations()] == [1, 2, 3]


def test_a_stop_in_the_middle_leaves_the_request_to_the_next_one(
    start_evaluator: StartEvaluator, state: RunStateStore, channel: WeightsChannel,
    make_policy_weights: MakePolicyWeights, evaluations: Callable[[], list[Evaluation]], wait_until: WaitUntil,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    has_begun = threading.Event()

    def evaluate_and_tell(*arguments: Any, **options: Any) -> Score | None:
        has_begun.set()
        return evaluate(*arguments, **options)

    monkeypatch.setattr("actors.evaluator.evaluate", evaluate_and_tell)
    channel.publish(make_policy_weights(1), evaluated=make_policy_weights(1))
    endless = start_evaluator(config=replace(CONFIG, episodes=10**9))
    assert has_begun.wait(PATIENCE_S)
    endless.stop()
    assert evaluations() == []
    start_evaluator()
    wait_until(lambda: len(evaluations()) == 1, "the result")
    assert state.read().evaluations_done == 1


def test_a_result_that_redis_lost_is_recorded_again(
    start_evaluator: StartEvaluator, state: RunStateStore, channel: WeightsChannel, redis_client: DamagingClient,
    keys: Keys, make_policy_weights: MakePolicyWeights, evaluations: Callable[[], list[Evaluation]],
    wait_until: WaitUntil,
) -> None:  # fmt: skip
    channel.publish(make_policy_weights(1), evaluated=make_policy_weights(1))
    start_evaluator()
    wait_until(lambda: len(evaluations()) == 1, "the result")
    (judged,) = evaluations()
    with redis_client.pipeline(transaction=True) as pipe:  # as if Redis had died before it was on the disk
        pipe.delete(keys.evaluations, keys.evaluation_counters)
        pipe.execute()
    wait_until(lambda: evaluations() == [judged], "the same result again")
    assert (state.read().evaluations_done, state.read().evaluations_missed) == (1, 0)


def test_a_result_whose_request_is_lost_as_well_is_judged_when_it_comes_again(
    start_evaluator: StartEvaluator, state: RunStateStore, channel: WeightsChannel, redis_client: DamagingClient,
    keys: Keys, make_policy_weights: MakePolicyWeights, evaluations: Callable[[], list[Evaluation]],
    wait_until: WaitUntil,
) -> None:  # fmt: skip
    channel.publish(make_policy_weights(1), evaluated=make_policy_weights(1))
    start_evaluator()
    wait_until(lambda: len(evaluations()) == 1, "the result")
    with redis_client.pipeline(transaction=True) as pipe:
        pipe.delete(keys.evaluations, keys.evaluation_counters)
        pipe.xtrim(keys.evaluation_requests, maxlen=0)
        pipe.hset(keys.run, mapping={"policy_version": 0, "evaluations_requested": 0})
        pipe.execute()
    channel.publish(make_policy_weights(1), evaluated=make_policy_weights(1))
    wait_until(lambda: state.read().evaluations_done == 1, "the result of the second request")
    assert [e.policy_version for e in evaluations()] == [1]
    assert state.read().evaluations_missed == 0


class Gate:
    """Holds the first evaluation until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        monkeypatch.setattr("actors.evaluator.evaluate", self._evaluate)

    def _evaluate(self, *arguments: Any, **options: Any) -> Score | None:
        self.has_begun.set()
        assert self.may_end.wait(PATIENCE_S)
        return evaluate(*arguments, **options)


def test_a_request_that_redis_loses_while_it_is_judged_is_counted_once(
    start_evaluator: StartEvaluator, state: RunStateStore, channel: WeightsChannel, redis_client: DamagingClient,
    keys: Keys, make_policy_weights: MakePolicyWeights, evaluations: Callable[[], list[Evaluation]],
    wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    gate = Gate(monkeypatch)
    channel.publish(make_policy_weights(1), evaluated=make_policy_weights(1))
    start_evaluator()
    assert gate.has_begun.wait(PATIENCE_S)
    with redis_client.pipeline(transaction=True) as pipe:
        pipe.xtrim(keys.evaluation_requests, maxlen=0)
        pipe.hset(keys.run, mapping={"policy_version": 0, "evaluations_requested": 0})
        pipe.execute()
    for version in (1, 2):  # the learner finds out, and asks again
        channel.publish(make_policy_weights(version), evaluated=make_policy_weights(version))
    gate.may_end.set()
    wait_until(lambda: state.read().evaluations_waiting == 0, "the result of the last request")
    assert [e.policy_version for e in evaluations()] == [1, 2]
    assert (state.read().evaluations_requested, state.read().evaluations_done) == (2, 2)


def test_a_request_that_a_full_queue_drops_while_it_is_judged_keeps_its_result(
    start_evaluator: StartEvaluator, state: RunStateStore, channel: WeightsChannel,
    make_policy_weights: MakePolicyWeights, evaluations: Callable[[], list[Evaluation]], wait_until: WaitUntil,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    gate = Gate(monkeypatch)
    channel.publish(make_policy_weights(1), evaluated=make_policy_weights(1))
    start_evaluator(config=replace(CONFIG, episodes=1))
    assert gate.has_begun.wait(PATIENCE_S)
    for version in range(2, EVALUATION_BACKLOG + 2):
        channel.publish(make_policy_weights(version), evaluated=make_policy_weights(version))
    gate.may_end.set()
    wait_until(lambda: state.read().evaluations_waiting == 0, "the queue to be done")
    assert [e.policy_version for e in evaluations()] == list(range(1, EVALUATION_BACKLOG + 2))


def test_requests_that_a_long_queue_dropped_are_told_and_nobody_waits_for_them(
    start_evaluator: StartEvaluator, state: RunStateStore, channel: WeightsChannel,
    make_policy_weights: MakePolicyWeights, evaluations: Callable[[], list[Evaluation]], wait_until: WaitUntil,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    versions = range(1, EVALUATION_BACKLOG + 4)
    for version in versions:
        policy = make_policy_weights(version)
        channel.publish(policy, evaluated=policy)
    assert state.read().evaluations_waiting == len(versions)
    with caplog.at_level(logging.WARNING, logger="actors.evaluator"):
        start_evaluator(config=replace(CONFIG, episodes=1))
        wait_until(lambda: bool(caplog.records), "the end of the queue to be told")
    assert state.read().evaluations_waiting == 0
    judged = evaluations()
    assert [e.policy_version for e in judged] == list(versions)[-len(judged) :]
    missed = len(versions) - len(judged)
    assert missed == state.read().evaluations_missed == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"3 evaluations were asked for and not made: the queue keeps {EVALUATION_BACKLOG}, and drops damaged ones"
    ]


def test_a_damaged_request_is_skipped_and_counted_so_that_nobody_waits_for_it(
    start_evaluator: StartEvaluator, state: RunStateStore, channel: WeightsChannel, redis_client: RedisClient,
    keys: Keys, make_policy_weights: MakePolicyWeights, evaluations: Callable[[], list[Evaluation]],
    wait_until: WaitUntil,
) -> None:  # fmt: skip
    redis_client.xadd(keys.evaluation_requests, {"m": b"\x93junk"})
    redis_client.xadd(keys.evaluation_requests, {"nothing": "here"})
    redis_client.hincrby(keys.run, "evaluations_requested", 2)
    channel.publish(make_policy_weights(4), evaluated=make_policy_weights(4))
    start_evaluator()
    wait_until(lambda: len(evaluations()) == 1, "the sound request")
    assert evaluations()[0].policy_version == 4
    wait_until(lambda: state.read().evaluations_waiting == 0, "the damaged ones to be counted")
    assert (state.read().evaluations_done, state.read().evaluations_missed) == (3, 2)


def test_another_environment_is_refused(start_evaluator: StartEvaluator, run_config: RunConfig) -> None:
    run = replace(run_config, environment=replace(run_config.environment, observation_dim=5))
    with pytest.raises(SpecMismatch, match=r"observation_dim=5.*got .*observation_dim=3"):
        start_evaluator(run).join()


def test_the_process_ends_on_sigterm_with_code_0(
    state: RunStateStore, run_config: RunConfig, redis_endpoint: RedisEndpoint, channel: WeightsChannel,
    make_policy_weights: MakePolicyWeights, evaluations: Callable[[], list[Evaluation]], wait_until: WaitUntil,
    tmp_path: Path,
) -> None:  # fmt: skip
    config = tmp_path / "run.toml"
    config.write_bytes(tomli_w.dumps({**asdict(run_config), "evaluator": {"episodes": 2}}).encode())
    channel.publish(make_policy_weights(1), evaluated=make_policy_weights(1))
    process = subprocess.Popen(
        [sys.executable, "-m", "actors", "evaluator", "--config", str(config)],
        env={**os.environ, **redis_endpoint.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: [e.episodes for e in evaluations()] == [2], "a result")
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert state.endpoints() == {}
