"""Settings of the actors and of the evaluator."""

from __future__ import annotations

from dataclasses import dataclass

from replay_service.config import require_at_least, require_positive


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """The `[actor]` table."""

    resend_window_s: float = 5.0
    """Acknowledged messages are kept this long and sent again if Redis lost them in a crash (its append-only file is
    synced every second)."""
    longest_poll_s: float = 0.25
    """Longest pause between two requests for steps while the limiter holds an actor back."""
    max_restarts: int = 10
    """Crashed actors that one host replaces within `restart_window_s` before it gives up."""
    restart_window_s: float = 600.0
    """Length of the window in which `max_restarts` are counted."""

    def __post_init__(self) -> None:
        require_positive("actor.resend_window_s", self.resend_window_s)
        require_positive("actor.longest_poll_s", self.longest_poll_s)
        require_at_least("actor.max_restarts", self.max_restarts, 0)
        require_positive("actor.restart_window_s", self.restart_window_s)


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig:
    """The `[evaluator]` table."""

    episodes: int = 50
    """Episodes an evaluation, each from its own fixed seed."""
    seed: int = 1_000_000
    """Seed of the first evaluation episode; episode i is reset with `seed + i`, the same for every version and run."""

    def __post_init__(self) -> None:
        require_at_least("evaluator.episodes", self.episodes, 1)
        require_at_least("evaluator.seed", self.seed, 0)
