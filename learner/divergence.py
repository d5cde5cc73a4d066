"""Learning that has diverged is ended while the last checkpoint is still from before it."""

from __future__ import annotations

from collections.abc import Iterable

from replay_service.errors import LearningDiverged

_NAMED = 3


def refuse_divergence(not_finite: Iterable[str], grad_steps: int) -> None:
    """End a run whose networks or metrics have left the finite numbers; nothing that follows could be used.

    Args:
        not_finite: names of what is NaN or infinite.
        grad_steps: gradient steps so far.

    Raises:
        LearningDiverged: there is any.
    """
    names = list(not_finite)
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise LearningDiverged(
            f"learning has diverged: after {grad_steps:,} gradient steps {', '.join(names[:_NAMED])}{more} "
            f"{'are' if len(names) > 1 else 'is'} NaN or infinite. Checkpoints are from before; --restart-behavior "
            "resume goes on from the newest, with a setting that holds what grew: --learner.max-weight, "
            "--learner.min-target and --learner.max-target, or smaller learning rates"
        )
