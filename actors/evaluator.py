"""The evaluator: judge every version that the learner asks about, in order, and report."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from actors.config import EvaluatorConfig
from actors.environment import Environment, make_environment
from actors.evaluation import Score, evaluate
from actors.metrics import EvaluatorMetrics
from actors.policy import NumpyPolicy
from replay_service.config import RunConfig
from replay_service.connection import FAREWELL_ERRORS, RedisEndpoint, connect
from replay_service.errors import SpecMismatch, WireError
from replay_service.keys import Keys
from replay_service.patience import Patience
from replay_service.process import StopSignal, serve_metrics
from replay_service.reports import Evaluation, Reports
from replay_service.run_state import RunStateStore
from replay_service.spec_check import check_spec
from replay_service.waits import WaitSeconds
from replay_service.weights_channel import EVALUATION_BACKLOG, EvaluationRequest, EvaluationRequests

_PROCESS_NAME = "evaluator"
_BLOCK_MS = 1_000

_log = logging.getLogger(__name__)


class _Judged(NamedTuple):
    evaluation: Evaluation
    request_id: str


class Evaluator:
    """The process of the evaluator. A restarted one goes on after the last request that has a result."""

    def __init__(self, run: RunConfig, config: EvaluatorConfig, endpoint: RedisEndpoint, *, stop: StopSignal) -> None:
        self._run = run
        self._config = config
        self._stop = stop
        client = connect(endpoint)
        keys = Keys(run.run_id)
        self._client, self._keys = client, keys
        self._state = RunStateStore(client, keys)
        self._reports = Reports(client, keys)
        self._requests = EvaluationRequests(client, keys, fitting=run.spec)
        self._newest: _Judged | None = None
        self._registry = CollectorRegistry()
        self._metrics = EvaluatorMetrics.register(self._registry)
        self._patience = Patience(_PROCESS_NAME, stop, waits=WaitSeconds.register(self._registry, _PROCESS_NAME))

    def run(self) -> None:
        """Work until a stop is asked for.

        Raises:
            SpecMismatch: this machine's environment, or this program's version, is not the run's.
        """
        environment = make_environment(self._run.env, max_episode_steps=self._run.environment.max_episode_steps)
        if environment.spec != self._run.spec:
            raise SpecMismatch(f"expected {self._run.spec}, got {environment.spec} from this machine's environment")
        self._patience.until_answered(lambda: check_spec(self._client, self._keys, self._run.spec, who="the evaluator"))
        address = serve_metrics(self._registry, self._run.metrics_host)
        self._patience.until_answered(lambda: self._state.publish_endpoint(_PROCESS_NAME, address))
        self._requests.cursor = self._patience.until_answered(self._reports.last_judged_request) or "0-0"
        while not self._stop.is_set():
            self._patience.until_answered(self._look_back)
            try:
                request = self._patience.until_answered(lambda: self._requests.next(block_ms=_BLOCK_MS))
            except WireError as error:
                _log.error("a request is damaged and skipped: %s", error)
                continue
            if request is not None:
                self._judge(environment, request)
            elif not self._stop.is_set():
                self._settle()
        environment.close()
        try:
            self._state.withdraw_endpoint(_PROCESS_NAME)
        except FAREWELL_ERRORS as error:
            _log.warning("left without saying goodbye: %s", error)

    def _look_back(self) -> None:
        """Record the last result again, should Redis have died and lost it alone."""
        newest = self._newest
        if newest is not None and self._reports.last_judged_request() != newest.request_id:
            if self._requests.holds(newest.request_id):
                _log.warning("Redis lost the result of version %d: recorded again", newest.evaluation.policy_version)
                self._reports.add_evaluation(newest.evaluation, request_id=newest.request_id)
            else:
                self._newest = None  # the request is lost as well, and comes again under another id

    def _settle(self) -> None:
        """Note, with the queue empty, what was asked for and never came out of it."""
        last_judged = None if self._newest is None else self._newest.request_id
        missed = self._patience.until_answered(
            lambda: self._reports.settle_evaluations(read_to=self._requests.cursor, last_judged=last_judged)
        )
        if missed:
            _log.warning(
                "%d evaluations were asked for and not made: the queue keeps %d, and drops damaged ones",
                missed, EVALUATION_BACKLOG,
            )  # fmt: skip

    def _judge(self, environment: Environment, request: EvaluationRequest) -> None:
        began = time.monotonic()
        score = evaluate(
            environment,
            NumpyPolicy(request.policy),
            episodes=self._config.episodes,
            first_seed=self._config.seed,
            should_stop=self._stop.is_set,
        )
        if score is None:
            return
        evaluation = Evaluation(
            policy_version=request.policy.version,
            env_steps=request.policy.env_steps,
            grad_steps=request.policy.grad_steps,
            success_any=score.success_any,
            success_final=score.success_final,
            success_fraction=score.success_fraction,
            episode_return=score.episode_return,
            episode_length=score.episode_length,
            episodes=self._config.episodes,
            seconds=time.monotonic() - began,
            unix_seconds=time.time(),
        )
        if self._patience.until_answered(lambda: self._record(evaluation, request.request_id), after_stop_s=5.0):
            self._newest = _Judged(evaluation, request.request_id)
            self._note(score, evaluation)

    def _record(self, evaluation: Evaluation, request_id: str) -> bool:
        """Report a result, unless Redis lost the request meanwhile: it comes again, and would be counted twice."""
        if self._requests.lost(request_id):
            _log.warning("Redis lost the request for version %d, which comes again", evaluation.policy_version)
            return False
        self._reports.add_evaluation(evaluation, request_id=request_id)
        return True

    def _note(self, score: Score, evaluation: Evaluation) -> None:
        self._metrics.evaluations.inc()
        self._metrics.seconds.observe(evaluation.seconds)
        self._metrics.policy_version.set(evaluation.policy_version)
        self._metrics.env_steps.set(evaluation.env_steps)
        self._metrics.episode_return.set(score.episode_return)
        self._metrics.episode_length.set(score.episode_length)
        for kind, value in (
            ("any", score.success_any),
            ("final", score.success_final),
            ("fraction", score.success_fraction),
        ):
            if value is not None:
                self._metrics.success_rate.labels(kind).set(value)
        _log.info("version %d at %d env steps: %s", evaluation.policy_version, evaluation.env_steps, score)
