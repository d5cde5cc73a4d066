"""Which policy is published when, by what number, and for whose steps."""

from __future__ import annotations

import logging
import math
import time

from learner.checkpoint import Progress
from learner.config import LearnerConfig
from learner.divergence import refuse_divergence
from learner.metrics import LearnerMetrics
from learner.networks import PublicationStamp, export_policy
from learner.update import LearnerState, acting_policy, evaluated_policy
from replay_service.config import RunConfig
from replay_service.policy_weights import PolicyWeights
from replay_service.run_state import Phase, RunState
from replay_service.weights_channel import WeightsChannel

_log = logging.getLogger(__name__)


class Publisher:
    """Puts versions of the policy into the weights channel.

    Args:
        run: the run's settings.
        config: the learner's settings.
        state: what is published.
        channel: where to.
        metrics: count the versions.
    """

    def __init__(
        self,
        run: RunConfig,
        config: LearnerConfig,
        state: LearnerState,
        *,
        channel: WeightsChannel,
        metrics: LearnerMetrics,
    ) -> None:
        self._run = run
        self._config = config
        self._state = state
        self._channel = channel
        self._metrics = metrics
        self._published: PolicyWeights | None = None
        self._untrained: PolicyWeights | None = None
        """Asked to be judged by this process."""
        self._judged: PolicyWeights | None = None
        """What the evaluator was last asked to judge."""

    def publish(self, progress: Progress, *, for_evaluation: bool = False, enter: Phase | None = None) -> None:
        """Publish the next version, with its evaluation and the phase that begins with it in the same step.

        Raises:
            LearningDiverged: the policy is not finite; actors keep the one before.
        """
        number = progress.policy_version + 1
        weights = self._acting(progress, number)
        evaluated = self._evaluated(progress, number) if for_evaluation else None
        for policy in (weights, evaluated):
            problem = None if policy is None else policy.problem()
            refuse_divergence([f"the policy ({problem})"] if problem else [], progress.grad_steps)
        self._channel.publish(weights, evaluated=evaluated, asked_before=self._judged, enter=enter)
        self._published, self._judged = weights, evaluated or self._judged
        progress.policy_version = number
        self._metrics.policy_version.set(number)
        self._metrics.publications.inc()

    def publish_online(self, progress: Progress) -> None:
        """Publish a version of the online phase; it is evaluated when its environment steps have come."""
        every, paid = self._config.evaluate_every_env_steps, self.paid_env_steps(progress)
        # The version at the end of the budget is evaluated as the last one, when the run is complete.
        due = every > 0 and progress.next_evaluation_env_steps <= paid < self._run.num_env_steps
        self.publish(progress, for_evaluation=due)
        while due and progress.next_evaluation_env_steps <= paid:
            progress.next_evaluation_env_steps += every

    def publish_what_redis_lost(self, progress: Progress, known: RunState) -> None:
        """Publish the newest version again when Redis, which died, has forgotten it, and with it perhaps a phase.

        The versions before it are of use to nobody, but for those that were to be judged: the last one is asked for
        again, and version 0 where Redis knows of no request at all.
        """
        if self._untrained is not None and not known.evaluations_requested:
            self._channel.request_evaluation(self._untrained)
        if known.policy_version >= progress.policy_version:
            return
        _log.warning("Redis lost version %d: it is published again", progress.policy_version)
        phase, number = progress.phase, progress.policy_version
        judged = self._judged
        if judged is None and phase is Phase.FINISHED:
            judged = self._evaluated(progress, number)  # nothing was learned since: it can be written out once more
        self._channel.publish(
            self._published or self._acting(progress, number),
            asked_before=judged,
            enter=phase if phase in (Phase.ONLINE, Phase.FINISHED) else None,
        )

    def request_untrained_evaluation(self, progress: Progress, known: RunState) -> None:
        """Have version 0 judged, once: a learner that crashed before its first checkpoint has asked already."""
        if not known.evaluations_requested:
            self._untrained = self._evaluated(progress, 0)
            self._channel.request_evaluation(self._untrained)

    def paid_env_steps(self, progress: Progress) -> int:
        """Environment steps that the updates so far are owed to: actors may be ahead, a learning curve must not be."""
        if progress.online_grad_steps == 0:
            return 0
        initial = min(self._run.initial_env_steps, self._run.num_env_steps)
        return min(progress.env_steps, initial + math.ceil(progress.online_grad_steps / self._run.utd_ratio))

    def _acting(self, progress: Progress, number: int) -> PolicyWeights:
        """The policy under a number, for those who act."""
        return export_policy(acting_policy(self._state), self._stamp(progress, number))

    def _evaluated(self, progress: Progress, number: int) -> PolicyWeights:
        """The policy under a number as it is judged; written out only for those versions that are."""
        return export_policy(evaluated_policy(self._state), self._stamp(progress, number))

    def _stamp(self, progress: Progress, number: int) -> PublicationStamp:
        exact = self._run.lockstep or progress.phase is Phase.FINISHED
        env_steps = progress.env_steps if exact else self.paid_env_steps(progress)
        return PublicationStamp(number, progress.grad_steps, env_steps, time.time())
