"""`launcher chaos`: crash drills on a run that is up, a line a drill."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import fields

from actors.config import ActorConfig
from launcher.drill import Drill, LiveRun, NothingLeftToKill, NothingToKillNow, Role, execute
from launcher.experiment import LauncherConfig
from launcher.run_directory import RunDirectory
from launcher.wording import percent
from replay_service.config import RunConfig
from replay_service.errors import ConfigError, RunDirectoryError, UserError

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_PAUSE_S = 0.2


def parse_duration(option: str, text: str) -> float:
    """Read '30s', '1.5m', '2h' or plain seconds.

    Raises:
        ConfigError: the text is none of them, or not above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if seconds <= 0:
        raise ConfigError(f"{option}: expected a time like 30s, 5m or 1h, got {text!r}")
    return seconds


def check_restart_budget(role: Role, every_s: float, times: int | None, budget: LauncherConfig | ActorConfig) -> None:
    """Refuse drills that the run would answer, rightly, by giving up.

    Args:
        role: what is killed.
        every_s: from one kill to the next.
        times: most kills; None for no end.
        budget: settings of who replaces the role: the pool replaces actors, the launcher everything else.

    Raises:
        ConfigError: they come faster than the run may replace a role.
    """
    if role == "redis":
        return  # the replay service starts it again as often as it takes
    fitting = int(budget.restart_window_s / every_s) + 1
    planned = fitting if times is None else min(times, fitting)
    if planned > budget.max_restarts:
        slowest = budget.restart_window_s / max(1, budget.max_restarts)
        option = "--actor.max-restarts" if isinstance(budget, ActorConfig) else "--launcher.max-restarts"
        raise ConfigError(
            f"--every: {planned} kills within {budget.restart_window_s:.0f} s, but the run replaces a role at most "
            f"{budget.max_restarts} times in that time and then gives up: kill every {slowest + 1:.0f}s, give --times "
            f"{budget.max_restarts}, or start the run with a larger {option}"
        )


def line(drill: Drill) -> str:
    """One drill in words."""
    audit = drill.audit
    if drill.back_after_s is not None:
        back = f"works again after {drill.back_after_s:.1f} s ({drill.shown_by})"
    else:
        back = drill.shown_by if drill.passed else f"NOT BACK: {drill.shown_by}"
    steps = (
        f"steps lost {audit.lost_steps}, doubled {audit.doubled_steps}, unaccounted {audit.unaccounted_steps}; "
        f"success {percent(drill.success_before)} before, {percent(drill.success_after)} after"
    )
    verdict = "ok " if drill.passed else "BAD"
    bad = "".join(f"; {text}" for text in audit.bad_findings)
    return f"{verdict}  drill {drill.number}: {drill.killed} {back}; {steps}{bad}"


def run_drills(
    directory: RunDirectory,
    config: RunConfig,
    role: Role,
    *,
    every_s: float | None,
    times: int,
    limit_s: float,
    as_json: bool,
    say: Callable[[str], None],
) -> bool:
    """Kill, wait, count; again until `times`, the end of the run, or Ctrl-C.

    Behind the first drill no refusal hides a drill that failed: what is away at its turn is waited for, and a run that
    is over ends the series with its verdict.

    Args:
        directory: of a run that is up.
        config: its configuration.
        role: what to kill.
        every_s: from one kill to the next; None for a single drill.
        times: most drills; 0 for no end.
        limit_s: see `drill.execute`.
        as_json: say one JSON object a drill, and nothing else.
        say: prints a line.

    Returns:
        Whether every drill passed.

    Raises:
        ConfigError, RunDirectoryError: there is nothing that may be killed, and no drill has failed before.
    """
    if directory.holder() is None:
        raise RunDirectoryError(f"{directory.path} is not running: drills need a run that is up (`launcher up`)")
    run = LiveRun(directory, config)
    passed, number = True, 0
    try:
        while True:
            began = time.monotonic()
            drill = _take_turn(run, role, number, limit_s=limit_s, say=_silent if as_json else say)
            number += 1
            if isinstance(drill, Drill):
                say(json.dumps(drill.to_json()) if as_json else line(drill))
                passed = passed and drill.passed
            else:
                _say_missed(number, role, drill, as_json=as_json, say=say)
                passed = False
            if every_s is None or number == times or (isinstance(drill, Drill) and drill.ended_as is not None):
                return passed
            while time.monotonic() - began < every_s:
                time.sleep(_PAUSE_S)
                if directory.holder() is None:
                    print("the run has ended", file=sys.stderr)
                    return passed
    except NothingLeftToKill as error:
        if number == 0:
            raise
        print(error, file=sys.stderr)
        return passed
    except UserError as error:
        if passed:
            raise
        print(f"error: {error}", file=sys.stderr)
        return False
    except KeyboardInterrupt:
        return passed
    finally:
        run.close()


def _take_turn(run: LiveRun, role: Role, number: int, *, limit_s: float, say: Callable[[str], None]) -> Drill | str:
    """One drill; behind the first, what is away is given as long to come as a drill gives it to come back.

    Returns:
        Why there was none: it did not come.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return execute(run, role, number, limit_s=limit_s, say=say)
        except NothingToKillNow as error:
            if number == 0:
                raise
            if time.monotonic() > deadline:
                return f"nothing to kill for {limit_s:g} s: {error}"
        time.sleep(_PAUSE_S)


def _say_missed(number: int, role: Role, reason: str, *, as_json: bool, say: Callable[[str], None]) -> None:
    """A drill that could not be held is one that failed, for programs that read one line a drill too."""
    if as_json:
        unknown = {part.name: None for part in fields(Drill)}
        say(json.dumps({**unknown, "number": number, "role": role, "shown_by": reason, "passed": False}))
    print(f"BAD  drill {number}: {reason}", file=sys.stderr)


def _silent(_text: str) -> None:
    pass
