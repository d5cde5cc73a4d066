"""Many actors on one host: load the libraries once, fork one process an actor, replace those that crash.

Importing NumPy, gymnasium and MuJoCo costs most of an actor's start and of its memory; a fork shares both. This
process stays single-threaded and opens no connection, so that forking it is safe.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

from replay_service.errors import USER_ERROR_EXIT_CODE
from replay_service.process import RestartBudget, StopSignal

_POLL_S = 0.2
_STOP_GRACE_S = 15.0

_log = logging.getLogger(__name__)

ActorMain = Callable[[int, bool], None]
"""Runs one actor in the child: (actor id, whether it replaces a crashed one); leaves by `sys.exit`."""


@dataclass(slots=True)
class _Slot:
    actor_id: int
    process: BaseProcess
    restart_at: float | None = None


class ActorPool:
    """The actors of one host."""

    def __init__(
        self,
        main: ActorMain,
        actor_ids: Sequence[int],
        *,
        budget: RestartBudget,
        stop: StopSignal,
        replaces_crashed: bool = False,
    ) -> None:
        self._main = main
        self._actor_ids = actor_ids
        self._budget = budget
        self._stop = stop
        self._replaces_crashed = replaces_crashed
        self._context = multiprocessing.get_context("fork")

    def run(self) -> int:
        """Run until a stop is asked for.

        Returns:
            An exit code: 0 after an orderly end, 2 when an actor refused to go on (wrong spec, say), 1 when the
            restart budget is spent.
        """
        replaces = self._replaces_crashed
        slots = [_Slot(actor_id, self._start(actor_id, replaces_crashed=replaces)) for actor_id in self._actor_ids]
        code = 0
        while not self._stop.is_set() and code == 0:
            self._stop.wait(_POLL_S)
            for slot in slots:
                code = code or self._tend(slot)
        self._end(slots)
        return code

    def _tend(self, slot: _Slot) -> int:
        if slot.restart_at is not None:
            if time.monotonic() >= slot.restart_at:
                slot.process = self._start(slot.actor_id, replaces_crashed=True)
                slot.restart_at = None
            return 0
        exit_code = slot.process.exitcode
        if exit_code is None or self._stop.is_set():
            return 0
        if exit_code == USER_ERROR_EXIT_CODE:
            _log.error("actor %d cannot go on; see its log", slot.actor_id)
            return USER_ERROR_EXIT_CODE
        pause = self._budget.next_pause_s()
        if pause is None:
            _log.error(
                "actor %d ended with code %s: %d restarts within %.0f s are spent, giving up",
                slot.actor_id,
                exit_code,
                self._budget.limit,
                self._budget.window_s,
            )
            return 1
        _log.warning("actor %d ended with code %s; restart in %.1f s", slot.actor_id, exit_code, pause)
        slot.restart_at = time.monotonic() + pause
        return 0

    def _start(self, actor_id: int, *, replaces_crashed: bool) -> BaseProcess:
        process = self._context.Process(target=self._main, args=(actor_id, replaces_crashed), name=f"actor-{actor_id}")
        process.start()
        return process

    def _end(self, slots: list[_Slot]) -> None:
        running = [slot.process for slot in slots if slot.process.exitcode is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _STOP_GRACE_S
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                _log.error("%s did not end in %.0f s and is killed", process.name, _STOP_GRACE_S)
                process.kill()
                process.join()
