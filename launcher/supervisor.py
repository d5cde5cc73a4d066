"""Keep a run's roles alive: start them in order, replace those that crash, stop them in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.program import RoleProgram
from replay_service.access import Role
from replay_service.errors import USER_ERROR_EXIT_CODE, AwacError, UserError
from replay_service.process import RESTARTED_VARIABLE, RestartBudget

LOST_EXIT_CODE = -1
"""What stands for the exit code of a program whose host or node is gone."""

_log = logging.getLogger(__name__)


class Placement(Protocol):
    """Where programs run; `placement.RolePlacement` on Ray, a fake in tests."""

    def start(self, program: RoleProgram, environment: dict[str, str]) -> int | None:
        """Start a program; returns its process id, or None while it waits for room: then `placed` tells."""

    def placed(self, name: str) -> int | None:
        """Process id of a program once it has been placed."""

    def poll(self, name: str) -> int | None:
        """Exit code, or None while it runs."""

    def stop(self, name: str, grace_s: float) -> int | None:
        """End a program; returns its exit code."""


class RunFailed(AwacError):
    """A role could not be kept alive; the run was stopped and can be resumed."""


class PlacementFailed(AwacError):
    """A program could not be placed: the cluster is too small, or it did not answer."""


class RoleRefused(UserError):
    """A role ended with a user error; the text is the role's own."""


@dataclass(slots=True)
class _Watched:
    program: RoleProgram
    budget: RestartBudget
    restart_at: float | None = None
    restarts: int = field(default=0)
    waits: bool = False
    """Whether it waits for room on a node."""
    is_restart: bool = False


class Supervisor:
    """Watches the roles of one run.

    Args:
        placement: where they run.
        environment: variables for a role's process (its Redis endpoint).
        max_restarts: per role, within `restart_window_s`.
        on_restart: called with the role's name each time a crashed one has been started again.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        environment: Callable[[RoleProgram], dict[str, str]],
        max_restarts: int,
        restart_window_s: float,
        on_restart: Callable[[str], None],
    ) -> None:
        self._placement = placement
        self._environment = environment
        self._max_restarts = max_restarts
        self._restart_window_s = restart_window_s
        self._on_restart = on_restart
        self._watched: dict[str, _Watched] = {}

    @property
    def names(self) -> list[str]:
        """Roles that were started, in order."""
        return list(self._watched)

    @property
    def waiting(self) -> list[RoleProgram]:
        """Programs that wait for room on a node, in order."""
        return [watched.program for watched in self._watched.values() if watched.waits]

    def start(self, program: RoleProgram) -> None:
        """Start a role and watch it from now on."""
        budget = RestartBudget(limit=self._max_restarts, window_s=self._restart_window_s)
        watched = self._watched[program.name] = _Watched(program, budget)
        self._note_start(watched, self._placement.start(program, self._environment(program)))

    def _note_start(self, watched: _Watched, pid: int | None) -> None:
        watched.waits = pid is None
        if pid is None:
            return
        name = watched.program.name
        if watched.is_restart:
            watched.restarts += 1
            self._on_restart(name)
        _log.info("started %s%s, process id %d", name, " again" if watched.is_restart else "", pid)

    def tend(self) -> None:
        """Look at every role once; start crashed ones again when their pause is over.

        Raises:
            RoleRefused: a role ended with exit code 2: its own message, without a restart.
            RunFailed: a role's restart budget is spent.
        """
        for name, watched in self._watched.items():
            if watched.restart_at is not None:
                if time.monotonic() >= watched.restart_at:
                    self._restart(watched)
                continue
            if watched.waits:
                try:
                    self._note_start(watched, self._placement.placed(name))
                except PlacementFailed as error:
                    self._pause(watched, f"{error}")
                continue
            code = self._placement.poll(name)
            if code is None:
                continue
            if code == USER_ERROR_EXIT_CODE:
                raise RoleRefused(f"{name}: {last_error(watched.program.log_path)}")
            lost = f"{name} was lost with its node or its Ray worker"
            self._pause(watched, lost if code == LOST_EXIT_CODE else f"{name} ended with code {code}")

    def _restart(self, watched: _Watched) -> None:
        watched.restart_at = None
        watched.is_restart = True
        environment = {**self._environment(watched.program), RESTARTED_VARIABLE: "1"}
        try:
            self._note_start(watched, self._placement.start(watched.program, environment))
        except PlacementFailed as error:
            self._pause(watched, f"{error}")

    def _pause(self, watched: _Watched, what: str) -> None:
        pause = self._next_pause_s(watched, what)
        _log.warning("%s; it is started again in %.1f s", what, pause)
        watched.waits = False
        watched.is_restart = True
        watched.restart_at = time.monotonic() + pause

    def _next_pause_s(self, watched: _Watched, what: str) -> float:
        pause = watched.budget.next_pause_s()
        if pause is None:
            raise RunFailed(
                f"{what} after {self._max_restarts} restarts within {self._restart_window_s:.0f} s; "
                f"its log is {watched.program.log_path}"
            )
        return pause

    def stop_all(self, grace_s: float, *, before_replay: Callable[[], None]) -> dict[str, int | None]:
        """Stop every role in order.

        Actors come first, so that their last trajectories are stored; the learner then saves all it has seen; the
        replay service comes last, whatever goes wrong before: it has yet to write Redis's last second to the disk.

        Args:
            grace_s: for each of them.
            before_replay: called while Redis still answers.

        Returns:
            Exit code by name, as `stop`.
        """
        by_role = {role: [n for n, w in self._watched.items() if w.program.role is role] for role in Role}
        try:
            codes = self.stop(by_role[Role.ACTOR] + by_role[Role.EVALUATOR] + by_role[Role.LEARNER], grace_s)
            before_replay()
        except Exception:  # not KeyboardInterrupt: a second Ctrl-C waits for nobody
            self.stop(by_role[Role.REPLAY], grace_s)
            raise
        return codes | self.stop(by_role[Role.REPLAY], grace_s)

    def stop(self, names: list[str], grace_s: float) -> dict[str, int | None]:
        """Stop roles one after the other.

        Returns:
            Exit code by name; None for a role that was not running.
        """
        codes: dict[str, int | None] = {}
        for name in names:
            if name in self._watched:
                codes[name] = self._placement.stop(name, grace_s)
                del self._watched[name]
                _log.info("stopped %s, exit code %s", name, codes[name])
        return codes


def last_error(log_path: Path) -> str:
    """The last 'error: ...' of a role's log, or where to look."""
    try:
        lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"see {log_path}"
    found = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return found[-1] if found else f"see {log_path}"
