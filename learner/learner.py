"""The learner's process: seeding -> pretraining -> online -> finished, resumable in any of them."""

from __future__ import annotations

import logging

import torch

from learner.checkpoint import Progress
from learner.gradient_steps import GradientSteps, capture_for
from learner.matrix_products import prefer_onednn
from learner.session import PROCESS_NAME, Session
from learner.startup import Experience, fill_mirror, restore, wait_for_seed
from learner.threads import use_threads
from learner.turn_taking import TurnTaking
from learner.upkeep import Upkeep
from replay_service.connection import FAREWELL_ERRORS
from replay_service.lockstep import turn_of_version
from replay_service.process import serve_metrics
from replay_service.rate_limiter import updates_allowed
from replay_service.run_state import Phase
from replay_service.spec_check import check_spec

_FINISHED_POLL_S = 1.0

_log = logging.getLogger(__name__)


class Learner:
    """The process. `run` is startup, the phases, shutdown.

    Args:
        session: just opened.
        exit_when_finished: end once the budget is done and judged, instead of waiting for a stop.
    """

    def __init__(self, session: Session, *, exit_when_finished: bool = False) -> None:
        self.session = session
        self._stop = session.stop
        self._exit_when_finished = exit_when_finished

    def run(self) -> bool:
        """Work until the budget is done and, unless told to exit then, a stop is asked for.

        Returns:
            Whether it ended because the budget is done and judged.

        Raises:
            CheckpointError: the run has made progress that no sound checkpoint holds, or none can be written.
            DatasetError: a seed message does not fit the run.
            LearningDiverged: the networks hold NaN or infinity.
            LockstepBroken: a turn of lock-step can never be completed.
            SpecMismatch: the run belongs to another environment or wire version.
        """
        session = self.session
        run, patience = session.run, session.patience
        session.state.lanes = use_threads(session.config, session.device)
        if session.device.type == "cpu":
            _log.info("matrix products by %s", "oneDNN" if prefer_onednn() else "the default library")
        address = serve_metrics(session.registry, run.metrics_host)
        seeded = wait_for_seed(session)
        if seeded is None:
            return False
        session.checkpoints.prepare()
        patience.until_answered(lambda: check_spec(session.client, session.keys, run.spec, who="the learner"))
        progress = restore(session)
        experience = fill_mirror(session, progress, seeded)
        # From here on the launcher takes the run for begun, and deletes the one that it overwrites.
        patience.until_answered(lambda: session.run_state.publish_endpoint(PROCESS_NAME, address))
        phases = Phases(session, progress, experience)
        if progress.phase in (Phase.SEEDING, Phase.PRETRAINING):
            phases.pretrain()
        if progress.phase is Phase.ONLINE and not self._stop.is_set():
            turns = experience.ingestion.turns
            if turns is not None:
                phases.fine_tune_in_turns(turns)
            else:
                phases.fine_tune()
        return self._finish(progress, phases.upkeep)

    def _finish(self, progress: Progress, upkeep: Upkeep) -> bool:
        session = self.session
        if progress.phase is not Phase.FINISHED and progress.phase is not Phase.SEEDING:
            upkeep.sync()  # so that the summary and the last checkpoint name the same step
            upkeep.checkpoint()
        upkeep.report()
        is_done = False
        while not self._stop.wait(_FINISHED_POLL_S):  # finished: metrics stay up until the launcher ends the run
            session.waits.add("end", _FINISHED_POLL_S)
            upkeep.sync()  # a Redis that died now may have lost the counters too
            if self._exit_when_finished and session.patience.until_answered(self._is_all_judged):
                # No launcher is there to say it; the replay service writes it into the summary.
                session.patience.until_answered(lambda: session.run_state.set_final_status("finished"))
                is_done = True
                break
        try:
            session.run_state.withdraw_endpoint(PROCESS_NAME)
        except FAREWELL_ERRORS as error:
            _log.warning("left without saying goodbye: %s", error)
        return is_done

    def _is_all_judged(self) -> bool:
        return not self.session.run_state.read().evaluations_waiting


class Phases:
    """The gradient steps of a learner: offline, and online under the limiter or in turns.

    Args:
        session: of the learner.
        progress: moves on with every step.
        experience: what batches are drawn from.
    """

    def __init__(self, session: Session, progress: Progress, experience: Experience) -> None:
        self._session, self._progress, self._mirror = session, progress, experience.mirror
        self._stop = session.stop
        capture = capture_for(session.device, session.config)
        self._steps = GradientSteps(session.state, experience.mirror, session.config, capture=capture)
        self.upkeep = Upkeep(session, progress, experience)

    def pretrain(self) -> None:
        """Learn offline from what there is, then publish the first version, with which the online phase begins."""
        session, progress = self._session, self._progress
        config = session.config
        if progress.phase is Phase.SEEDING:
            progress.phase = Phase.PRETRAINING
            if config.evaluate_untrained:
                session.patience.until_answered(
                    lambda: session.publisher.request_untrained_evaluation(progress, session.run_state.read())
                )
        if self._mirror.size == 0 and session.run.num_offline_steps:
            _log.warning("the offline phase is skipped: the run has no offline data")
        else:
            while progress.offline_grad_steps < session.run.num_offline_steps and not self._stop.is_set():
                metrics = self._step(config.offline_batch_size, offline_fraction=None)
                progress.offline_grad_steps += 1
                self.upkeep.after_step(metrics)
        if self._stop.is_set():
            return
        progress.next_evaluation_env_steps = config.evaluate_every_env_steps
        if self._enter(Phase.ONLINE):
            _log.info("offline phase done after %d gradient steps; going online", progress.offline_grad_steps)

    def fine_tune(self) -> None:
        """Learn online, as many steps as the limiter allows for the experience that has come."""
        config, progress = self._session.config, self._progress
        self.upkeep.sync()
        while not self._stop.is_set():
            allowed = self._updates_allowed()
            if allowed == 0:
                if self._budget_is_done():
                    self._complete()
                    return
                self.upkeep.await_experience("environment steps from the actors (limiter)")
                continue
            self._session.notice.done()
            for _ in range(min(allowed, config.publish_every_grad_steps)):
                self._step_online()
                if progress.online_grad_steps % config.publish_every_grad_steps == 0:
                    self._publish_online()
                if self._stop.is_set():
                    break

    def fine_tune_in_turns(self, turns: TurnTaking) -> None:
        """Learn online in lock-step: a turn's gradient steps, a version, the next turn."""
        progress = self._progress
        self.upkeep.sync()
        while not self._stop.is_set():
            for _ in range(self._updates_allowed()):
                self._step_online()
                if self._stop.is_set():
                    return
            if self._budget_is_done():
                self._complete()
                return
            if turn_of_version(progress.policy_version) < turns.next_turn:
                self._publish_online()
            while not turns.take(progress) and not self._stop.is_set():
                self.upkeep.await_experience(turns.awaited(progress))
            self._session.notice.done()

    def _complete(self) -> None:
        if self._enter(Phase.FINISHED):
            steps = self._progress.env_steps, self._progress.grad_steps
            _log.info("budget done: %d env steps, %d gradient steps", *steps)

    def _enter(self, phase: Phase) -> bool:
        """Save, then tell Redis, then publish the version that begins a phase, to be judged.

        The checkpoint comes first: once actors have seen a version, a crash must never lead back behind it. The
        counters come before the phase: who sees the phase sees what was done for it.

        Returns:
            Whether the phase was entered; False when a stop came before the disk had room for its checkpoint.
        """
        session, progress = self._session, self._progress
        before, progress.phase = progress.phase, phase
        if not self.upkeep.checkpoint():
            progress.phase = before
            return False
        self.upkeep.sync()
        session.patience.until_answered(lambda: session.publisher.publish(progress, for_evaluation=True, enter=phase))
        return True

    def _publish_online(self) -> None:
        self._session.patience.until_answered(lambda: self._session.publisher.publish_online(self._progress))

    def _step_online(self) -> None:
        config = self._session.config
        metrics = self._step(config.batch_size, offline_fraction=config.offline_fraction)
        self._progress.online_grad_steps += 1
        self.upkeep.after_step(metrics)

    def _step(self, batch_size: int, *, offline_fraction: float | None) -> torch.Tensor:
        metrics = self._steps.take(batch_size, offline_fraction=offline_fraction)
        self._session.metrics.grad_steps.inc()
        self._session.metrics.samples.inc(batch_size)
        return metrics

    def _updates_allowed(self) -> int:
        if self._mirror.size == 0:
            return 0
        run = self._session.run
        return updates_allowed(
            env_steps=self._progress.env_steps,
            online_grad_steps=self._progress.online_grad_steps,
            utd_ratio=run.utd_ratio,
            initial_env_steps=min(run.initial_env_steps, run.num_env_steps),
        )

    def _budget_is_done(self) -> bool:
        return self._progress.env_steps >= self._session.run.num_env_steps
