"""One rollout actor: ask for steps, take them, send them, follow the newest weights."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import replace
from functools import partial

import numpy as np
from prometheus_client import CollectorRegistry

from actors.config import ActorConfig
from actors.environment import Environment, make_environment
from actors.lockstep import play_turn
from actors.metrics import ActorMetrics
from actors.outbox import LostMessages, Outbox, Sent
from actors.policy import NumpyPolicy
from actors.rollout import Rollout
from actors.shared_weights import SharedWeights
from replay_service.config import RunConfig
from replay_service.connection import FAREWELL_ERRORS, RedisEndpoint, connect
from replay_service.errors import EpochLost, SpecMismatch, WireError
from replay_service.experience import Origin, Trajectory
from replay_service.keys import Keys
from replay_service.lockstep import steps_of_turn, turn_of_version
from replay_service.patience import Patience
from replay_service.policy_weights import PolicyWeights
from replay_service.process import StopSignal, WaitNotice, serve_metrics
from replay_service.run_state import RunStateStore
from replay_service.trajectory_stream import Admission, EpisodeOutcome, StoredEpisode, TrajectoryWriter
from replay_service.waits import WaitSeconds
from replay_service.weights_channel import WeightsChannel, decode

_ACTOR_STREAM = 1  # first word of the spawn key of every actor's generator
_SHORTEST_POLL_S = 0.01
_DELIVERY_AFTER_STOP_S = 10.0
_BAD_WEIGHTS_PAUSE_S = 1.0
_WAITS_FOR = {
    "phase": "the learner to finish pretraining",
    "limiter": "the learner (the actors are ahead by the limiter's whole band)",
    "turn": "the other actors and the learner to finish the turn",
    "budget": "the end of the run (every step of the budget is taken or admitted)",
}

_log = logging.getLogger(__name__)


def actor_generator(run_seed: int, actor_id: int, epoch: int, *, epochs_before: int = 0) -> np.random.Generator:
    """The generator of one epoch of one actor.

    Args:
        run_seed: of the run.
        actor_id: which actor.
        epoch: as the service numbered it.
        epochs_before: how many this process has begun. A Redis that lost the registration gives the same epoch once
            more, and the episodes of the first time, which are stored again, shall not be played again.
    """
    spawn_key = (_ACTOR_STREAM, actor_id, epoch) + ((epochs_before,) if epochs_before else ())
    return np.random.default_rng(np.random.SeedSequence(run_seed, spawn_key=spawn_key))


class Actor:
    """The process of one actor."""

    def __init__(
        self,
        run: RunConfig,
        config: ActorConfig,
        endpoint: RedisEndpoint,
        *,
        actor_id: int,
        stop: StopSignal,
        replaces_crashed: bool = False,
        shared_weights: SharedWeights | None = None,
    ) -> None:
        self._run = run
        self._config = config
        self._actor_id = actor_id
        self._stop = stop
        self._replaces_crashed = replaces_crashed
        client = connect(endpoint)
        keys = Keys(run.run_id)
        self._state = RunStateStore(client, keys)
        self._shared_weights = shared_weights
        self._channel = WeightsChannel(client, keys)
        self._writer = TrajectoryWriter(client, keys, run.spec, actor_id=actor_id)
        self._registry = CollectorRegistry()
        self._metrics = ActorMetrics.register(self._registry, actor_id)
        self._waits = WaitSeconds.register(self._registry, "actor")
        self._patience = Patience(f"actor {actor_id}", stop, waits=self._waits)
        self._notice = WaitNotice(f"actor {actor_id}")
        self._address = ""
        self._policy: NumpyPolicy | None = None
        self._epochs_begun = 0
        self._newest_seen = 0
        """Newest version that was looked at, used or refused."""

    def run(self) -> None:
        """Work until a stop is asked for.

        Raises:
            SpecMismatch: this environment is not the run's.
            StaleEpoch: another incarnation of this actor took over.
        """
        environment = make_environment(self._run.env, max_episode_steps=self._run.environment.max_episode_steps)
        if environment.spec != self._run.spec:
            raise SpecMismatch(f"expected {self._run.spec}, got {environment.spec} from this machine's environment")
        self._address = serve_metrics(self._registry, self._run.metrics_host)
        forgotten: tuple[Sent, ...] = ()
        try:
            while not self._stop.is_set():
                if self._open_epoch() is None:
                    break
                try:
                    if self._run.lockstep:
                        self._work_in_turns(environment)
                    else:
                        self._work(self._new_rollout(environment, self._send_again(forgotten)))
                except (EpochLost, LostMessages) as error:
                    # Redis writes in order: with the registration, or a message, it has forgotten all that came behind.
                    _log.error("actor %d opens a new epoch: %s", self._actor_id, error)
                    forgotten = self._outbox.kept
        finally:
            environment.close()
        self._leave()

    def _open_epoch(self) -> int | None:
        registration = secrets.token_hex(8)

        def register() -> int:
            self._state.publish_endpoint(self._process_name, self._address)
            return self._writer.register(replaces_crashed=self._replaces_crashed, registration=registration)

        self._sequence = -1
        self._outbox = Outbox(self._writer, resend_window_s=self._config.resend_window_s)
        epoch = self._patience.until_answered(register)
        self._replaces_crashed = False
        _log.info("actor %d registered, epoch %s", self._actor_id, epoch)
        return epoch

    def _send_again(self, forgotten: tuple[Sent, ...]) -> tuple[Sent, ...]:
        """Store under this epoch what was acknowledged in one that Redis has forgotten, as far as it is admitted.

        Returns:
            What is stored now.
        """
        stored: list[Sent] = []
        for sequence, sent in enumerate(forgotten):
            steps = sent.trajectory.num_steps
            admission = self._patience.until_answered(partial(self._request, steps))
            if admission is None or admission.lease_steps < steps:
                break  # others have been admitted for these steps meanwhile
            origin = replace(sent.trajectory.origin, epoch=self._writer.epoch, sequence=sequence)
            moved = replace(sent, trajectory=replace(sent.trajectory, origin=origin))
            deliver = partial(self._outbox.deliver, moved.trajectory, moved.outcome, want_steps=0)
            if self._patience.until_answered(deliver) is None:
                break
            stored.append(moved)
        if forgotten:
            _log.warning("actor %d has sent %d of %d messages again", self._actor_id, len(stored), len(forgotten))
        return tuple(stored)

    def _new_rollout(self, environment: Environment, stored: tuple[Sent, ...]) -> Rollout:
        """Begin to act, behind what this epoch has stored already."""
        epochs_before, self._epochs_begun = self._epochs_begun, self._epochs_begun + 1
        return Rollout(
            environment,
            actor_generator(self._run.seed, self._actor_id, self._writer.epoch, epochs_before=epochs_before),
            actor_id=self._actor_id,
            epoch=self._writer.epoch,
            first_episode=1 + max((sent.trajectory.origin.episode for sent in stored), default=-1),
            first_sequence=len(stored),
        )

    def _work_in_turns(self, environment: Environment) -> None:
        done = self._writer.stored_episode
        while not self._stop.is_set():
            policy = self._policy_of_turn(after=done.number if done is not None and done.ended else -1)
            if policy is None:
                return
            turn = turn_of_version(policy.version)
            steps = steps_of_turn(
                actor_id=self._actor_id,
                env_steps=policy.env_steps,
                num_env_steps=self._run.num_env_steps,
                max_episode_steps=self._run.spec.max_episode_steps,
            )
            stored = done.steps if done is not None and done.number == turn else 0
            for trajectory, outcome in play_turn(
                environment,
                policy,
                run_seed=self._run.seed,
                actor_id=self._actor_id,
                epoch=self._writer.epoch,
                turn=turn,
                steps=steps,
                rollout_length=self._run.rollout_length,
                should_stop=self._stop.is_set,
            ):
                if trajectory.origin.first_step < stored:
                    continue  # an earlier incarnation has sent this part
                sent = self._send_in_turn(trajectory, outcome)
                if sent is None:
                    return
            if not self._stop.is_set():
                done = StoredEpisode(turn, steps, ended=True)

    def _policy_of_turn(self, *, after: int) -> NumpyPolicy | None:
        """The policy of the newest turn, once that is later than the turn `after`; None when a stop is asked for."""
        pause = _SHORTEST_POLL_S
        while True:
            admission = self._patience.until_answered(lambda: self._request(0))
            if admission is None:
                return None
            if turn_of_version(admission.policy_version) > after:
                break
            self._notice.waiting(_WAITS_FOR["turn"])
            if self._stop.wait(pause):
                return None
            self._waits.add("turn", pause)
            pause = min(self._config.longest_poll_s, pause * 1.5)
        self._notice.done()
        policy = self._newest_policy(admission.policy_version)
        # A turn is played with its own policy or not at all: the learner drops what belongs to an older one.
        return policy if policy is not None and policy.version >= admission.policy_version else None

    def _send_in_turn(self, trajectory: Trajectory, outcome: EpisodeOutcome | None) -> Admission | None:
        want = trajectory.num_steps
        admission = self._patience.until_answered(lambda: self._request(want))
        while admission is not None and admission.lease_steps < want:
            # The band has room for a whole turn, but a learner that was restored catches up with its own past first.
            reason = admission.wait_reason or "limiter"
            self._notice.waiting(_WAITS_FOR[reason])
            if self._stop.wait(self._config.longest_poll_s):
                return None
            self._waits.add(reason, self._config.longest_poll_s)
            admission = self._patience.until_answered(lambda: self._request(want))
        if admission is None:
            return None
        return self._send(replace(trajectory, origin=self._next_origin(trajectory)), outcome, 0)

    def _next_origin(self, trajectory: Trajectory) -> Origin:
        """The trajectory's origin with the sequence that the service expects: what was skipped has none."""
        self._sequence += 1
        return replace(trajectory.origin, sequence=self._sequence)

    def _work(self, rollout: Rollout) -> None:
        want = self._run.rollout_length
        admission = self._patience.until_answered(lambda: self._request(want))
        while admission is not None and not self._stop.is_set():
            admission = self._wait_for_steps(admission, want)
            if admission is None:
                return
            policy = self._newest_policy(admission.policy_version)
            if policy is None:
                return
            self._metrics.weight_age_seconds.set(max(0.0, time.time() - policy.published_unix_seconds))
            trajectory, outcome = rollout.collect(policy, min(want, admission.lease_steps), self._stop.is_set)
            admission = self._send(trajectory, outcome, want)

    def _wait_for_steps(self, admission: Admission, want: int) -> Admission | None:
        pause = _SHORTEST_POLL_S
        while admission.lease_steps == 0 or admission.policy_version == 0:
            reason = admission.wait_reason or "phase"
            self._notice.waiting(_WAITS_FOR[reason])
            began = time.monotonic()
            if self._stop.wait(pause):
                return None
            pause = min(self._config.longest_poll_s, pause * 1.5)
            answer = self._patience.until_answered(lambda: self._request(want))
            self._waits.add(reason, time.monotonic() - began)
            if answer is None:
                return None
            admission = answer
        self._notice.done()
        return admission

    def _newest_policy(self, newest_version: int) -> NumpyPolicy | None:
        while newest_version > self._newest_seen and not self._stop.is_set():
            try:
                weights = self._patience.until_answered(lambda: self._fetch(newest_version))
            except WireError as error:
                if self._policy is not None and not self._run.lockstep:
                    _log.error("actor %d keeps version %d: %s", self._actor_id, self._policy.version, error)
                    self._newest_seen = newest_version
                    break
                self._notice.waiting(f"weights that it can use ({error})")
                self._stop.wait(_BAD_WEIGHTS_PAUSE_S)
                self._waits.add("weights", _BAD_WEIGHTS_PAUSE_S)
                continue
            if weights is None:
                break
            self._policy = NumpyPolicy(weights)
            self._newest_seen = weights.version
            self._metrics.policy_version.set(weights.version)
            self._metrics.weights_published.set(weights.published_unix_seconds)
        return self._policy

    def _fetch(self, newest_version: int) -> PolicyWeights | None:
        shared = self._shared_weights
        message = self._channel.message() if shared is None else shared.newest(newest_version, self._channel.message)
        return None if message is None else decode(message, self._run.spec)

    def _send(self, trajectory: Trajectory, outcome: EpisodeOutcome | None, want: int) -> Admission | None:
        began = time.monotonic()
        next_want = 0 if self._stop.is_set() else want
        admission = self._patience.until_answered(
            lambda: self._outbox.deliver(trajectory, outcome, want_steps=next_want), after_stop_s=_DELIVERY_AFTER_STOP_S
        )
        if admission is None:
            _log.error("actor %d leaves with %d steps that Redis did not take", self._actor_id, trajectory.num_steps)
            return None
        self._metrics.append_seconds.observe(time.monotonic() - began)
        self._metrics.env_steps.inc(trajectory.num_steps)
        self._note_resent()
        if outcome is not None:
            self._metrics.episodes.inc()
            self._metrics.successes.inc(1 if outcome.success else 0)
            self._metrics.episode_return.set(outcome.episode_return)
        return admission

    def _request(self, want: int) -> Admission:
        admission = self._outbox.request(want)
        self._note_resent()
        return admission

    def _note_resent(self) -> None:
        count, self._outbox.resent_messages = self._outbox.resent_messages, 0
        if count:
            _log.warning("Redis had forgotten %d messages of actor %d: sent again", count, self._actor_id)
            self._metrics.resent_messages.inc(count)

    def _leave(self) -> None:
        try:
            if self._writer.release() is None:
                return  # what is registered under this index is a newer process
            self._state.withdraw_endpoint(self._process_name)
        except FAREWELL_ERRORS as error:
            _log.warning("actor %d left without saying goodbye: %s", self._actor_id, error)

    @property
    def _process_name(self) -> str:
        return f"actor-{self._actor_id}"
