"""How a learner begins: the seed is awaited, a checkpoint restored, and the mirror filled from Redis."""

from __future__ import annotations

import logging
from typing import NamedTuple

from learner.checkpoint import Progress
from learner.ingestion import Ingestion
from learner.mirror import ReplayMirror
from learner.session import Session
from learner.turn_taking import refuse_missing_steps
from learner.update import fit_observation_scale
from replay_service.disk_space import wait_for_space
from replay_service.errors import CheckpointError, ConfigError
from replay_service.process import WaitNotice
from replay_service.run_state import Phase, RunState
from replay_service.seeding import SeedInfo, seed_info
from replay_service.trajectory_stream import TrajectoryReader

_PAUSE_S = 0.05

_log = logging.getLogger(__name__)


class Experience(NamedTuple):
    """What batches are drawn from, and what fills it."""

    mirror: ReplayMirror
    ingestion: Ingestion


def wait_for_seed(session: Session) -> SeedInfo | None:
    """Wait until the replay service has seeded the buffer; None when a stop was asked for first."""
    while not session.stop.is_set():
        found = session.patience.until_answered(lambda: seed_info(session.client, session.keys))
        if found is not None:
            session.notice.done()
            return found
        session.notice.waiting("the replay service to seed the buffer")
        session.stop.wait(_PAUSE_S)
        session.waits.add("seed", _PAUSE_S)
    return None


def restore(session: Session) -> Progress:
    """Load the newest sound checkpoint into the session's state and make known what it holds.

    Returns:
        How far the learner had come; the beginning, where nothing has been learned yet.

    Raises:
        CheckpointError: the run has made progress that no sound checkpoint holds.
        LockstepBroken: a learner before this one has found a turn of lock-step damaged.
    """
    run = session.run
    shared = session.patience.until_answered(session.run_state.read)
    if run.lockstep and shared is not None:
        refuse_missing_steps(shared.quarantined_steps, why="the learner before this one found them damaged")
    progress = session.checkpoints.restore(session.state)
    if progress is None:
        if shared is not None and (shared.policy_version > 0 or shared.checkpointed_grad_steps > 0):
            raise CheckpointError(
                f"run {run.run_id!r} has published policy version {shared.policy_version} and written a checkpoint of "
                f"{shared.checkpointed_grad_steps} gradient steps, but its checkpoints are gone: put them back, or "
                "start over with --restart-behavior restart"
            )
        return Progress()
    progress.stream_position = 0  # filling the mirror finds it again
    if run.lockstep:
        # A version names its turn. What was published behind the checkpoint is published again, bit by bit.
        due = progress.phase is Phase.ONLINE and progress.policy_version == 0
        unfinished = progress.phase is Phase.FINISHED and shared is not None and shared.phase is not progress.phase
        if due or unfinished:
            _publish(session, progress, for_evaluation=True)
        return progress
    if shared is not None:
        # Actors must see a newer number than any they have; what they then fetch is the restored policy.
        progress.policy_version = max(progress.policy_version, shared.policy_version)
        if _budget_grew(progress, shared):
            progress.phase = Phase.ONLINE
    phase = progress.phase
    if phase is Phase.ONLINE or (phase is Phase.FINISHED and shared is not None and shared.phase is not phase):
        # A crash between a checkpoint and the publication behind it has cost an evaluation: of the first version, or of
        # the last one.
        _publish(session, progress, for_evaluation=phase is Phase.FINISHED or progress.policy_version == 0)
    return progress


def fill_mirror(session: Session, progress: Progress, seeded: SeedInfo) -> Experience:
    """Read the seed and what the stream retains into a new mirror.

    Args:
        session: of the learner.
        progress: its stream position follows; in lock-step its turns are taken again.
        seeded: what the seed stream holds.

    Raises:
        DatasetError: a seed message does not fit the run.
        AwacError: in lock-step, the stream has lost turns that the checkpoint had taken in.
        LockstepBroken: in lock-step, a turn is damaged.
        ConfigError: the device has no room for the transitions that the run may hold.
    """
    run, config, stop, patience = session.run, session.config, session.stop, session.patience
    notice = WaitNotice("learner")  # `wait_for_seed` ends the session's own
    while True:
        mirror = _empty_mirror(session, progress, seeded.steps)
        ingestion = Ingestion(
            run,
            config,
            mirror,
            online=TrajectoryReader(session.client, session.keys.online, run.spec),
            quarantine=session.quarantine,
            patience=patience,
            metrics=session.metrics,
        )
        if _read_seed(session, ingestion) == seeded.steps or stop.is_set():
            break
        del mirror, ingestion  # the device may not have room for two
        if not notice.is_waiting:
            _log.warning("Redis has lost a part of the offline data")
        notice.waiting("the offline data to be stored again")
        stop.wait(_PAUSE_S)
        session.waits.add("seed", _PAUSE_S)
        seeded = wait_for_seed(session) or seeded
    if config.normalise_observations and progress.grad_steps == 0 and mirror.seed_size > 1:
        fit_observation_scale(session.state, mirror.seed_observations())
    while not stop.is_set() and patience.until_answered(lambda: ingestion.read_online(progress, block_ms=None) > 0):
        pass
    if ingestion.turns is not None and not stop.is_set():
        ingestion.turns.retake(progress)
    _prove_resume(session, progress)
    _log.info("mirror holds %d seed and %d online transitions", mirror.seed_size, mirror.online_size)
    return Experience(mirror, ingestion)


def _read_seed(session: Session, ingestion: Ingestion) -> int:
    """Transitions of the seed stream, which are in the mirror now; -1 where it was begun anew meanwhile."""
    reader = TrajectoryReader(session.client, session.keys.seed, session.run.spec)
    total = 0
    while not session.stop.is_set() and (steps := session.patience.until_answered(lambda: ingestion.read_seed(reader))):
        if steps < 0:
            return steps
        total += steps
    return total


def _empty_mirror(session: Session, progress: Progress, seed_steps: int) -> ReplayMirror:
    spec, replay = session.run.spec, session.run.replay
    try:
        return ReplayMirror(
            observation_dim=spec.observation_dim,
            action_dim=spec.action_dim,
            seed_steps=seed_steps,
            capacity=replay.capacity,
            evict_seed=replay.evict_seed,
            device=session.device,
        )
    # NumPy's two, for more than there is and for more than can be addressed, and torch's for both.
    except (MemoryError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and progress.grad_steps:
            raise  # a GPU that had room before has it again, once the memory of a killed process is freed: begin anew
        raise ConfigError(
            f"replay.capacity {replay.capacity:,}: {session.device} has no room for as many transitions and the "
            f"{seed_steps:,} of the offline data ({error}); give a smaller --replay.capacity"
        ) from error


def _publish(session: Session, progress: Progress, *, for_evaluation: bool) -> None:
    session.patience.until_answered(
        lambda: session.publisher.publish(progress, for_evaluation=for_evaluation, enter=progress.phase)
    )


def _budget_grew(progress: Progress, shared: RunState) -> bool:
    return progress.phase is Phase.FINISHED and shared.env_steps < shared.num_env_steps


def _prove_resume(session: Session, progress: Progress) -> None:
    if session.stop.is_set():
        return  # the mirror is not whole, and would prove nothing
    proof = wait_for_space(
        lambda: session.checkpoints.record_proof(stream_position=progress.stream_position),
        "learner",
        stop=session.stop,
        waits=session.waits,
    )
    if proof is None:
        return
    _log.info("resume proved: %s", proof)
    if proof.stream_position_found < proof.stream_position:
        _log.warning(
            "Redis lacks %d steps that the checkpoint had taken in: one that is killed may forget its last second; "
            "actors that still have them send them again",
            proof.stream_position - proof.stream_position_found,
        )
