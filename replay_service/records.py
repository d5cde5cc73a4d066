"""The files of a run that people read: `evaluations.csv`, `summary.json` and TensorBoard events."""

from __future__ import annotations

import csv
import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from replay_service.event_files import EventFiles
from replay_service.points import Point, evaluation_point, learner_point, run_point
from replay_service.reports import ActorLedger, Evaluation, LearnerReport, Reports
from replay_service.run_state import Phase, RunState

SUMMARY_FILE = "summary.json"
EVALUATIONS_FILE = "evaluations.csv"
EVENTS_FOLDER = "tensorboard"
CURSORS_FILE = f"{EVENTS_FOLDER}/recorded.json"
"""The newest report and evaluation that are in the event files, by their names in Redis."""
_SUMMARY_EVALUATION_FIELDS = (
    "policy_version",
    "env_steps",
    "grad_steps",
    "success_any",
    "success_final",
    "success_fraction",
    "episode_return",
    "episodes",
)


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a summary says about a run besides its counters."""

    run_id: str
    env: str
    preset: str
    seed: int


def unaccounted_steps(state: RunState, actors: list[ActorLedger]) -> int:
    """Steps that the run's counter holds and the actors' ledgers do not, or the other way round; 0 in a sound run."""
    return abs(state.env_steps - sum(actor.stored_steps for actor in actors)) + abs(
        state.quarantined_steps - sum(actor.quarantined_steps for actor in actors)
    )


def make_summary(
    identity: RunIdentity,
    status: str,
    state: RunState,
    actors: list[ActorLedger],
    evaluations: list[Evaluation],
    *,
    wall_seconds: float,
    rates: tuple[float, float],
) -> dict[str, Any]:
    """The contents of `summary.json`.

    Args:
        identity: names of the run.
        status: running, finished, stopped or failed.
        state: the run's counters.
        actors: their ledgers.
        evaluations: all of them, oldest first.
        wall_seconds: time that the run has been up, over all its sessions.
        rates: environment steps and gradient steps per second, over the online phase of this session.
    """
    return {
        "status": status,
        **asdict(identity),
        "phase": state.phase.value,
        "env_steps": state.env_steps,
        "grad_steps": state.grad_steps,
        "episodes": state.episodes,
        "policy_version": state.policy_version,
        "wall_seconds": round(wall_seconds, 1),
        "env_steps_per_second": round(rates[0], 2),
        "grad_steps_per_second": round(rates[1], 2),
        "utd_ratio": None if (utd_ratio := state.measured_utd_ratio) is None else round(utd_ratio, 4),
        "seed_steps": state.seed_steps,
        "duplicates_refused": state.duplicate_steps,
        "quarantined": state.quarantined_steps,
        "quarantined_messages": state.quarantined_messages,
        "unaccounted_steps": unaccounted_steps(state, actors),
        "actor_restarts": state.actor_restarts,
        "learner_restarts": state.learner_restarts,
        "evaluations_missed": state.evaluations_missed,
        "evaluations": [
            {name: getattr(evaluation, name) for name in _SUMMARY_EVALUATION_FIELDS} for evaluation in evaluations
        ],
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replace a JSON file in one step, so that a reader never sees half of it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


class PointSink(Protocol):
    """Where points go: event files, a tracking service."""

    def write(self, point: Point) -> None:
        """Take a point."""

    def flush(self) -> None:
        """Put what was taken where it belongs; may be called again after an OSError, and has lost nothing then."""

    def close(self) -> None:
        """Flush, and take no more."""


class Recorder:
    """Follows the reports in Redis and keeps the files up to date. Safe to restart: files are rebuilt from Redis."""

    def __init__(
        self, run_dir: Path, reports: Reports, identity: RunIdentity, *, sinks: tuple[PointSink, ...] = ()
    ) -> None:
        """Open the event files.

        Args:
            run_dir: the run directory.
            reports: where to read from.
            identity: names of the run.
            sinks: where points go besides the event files.
        """
        self._run_dir = run_dir
        self._reports = reports
        self._identity = identity
        self._sinks: tuple[PointSink, ...] = (EventFiles(run_dir / EVENTS_FOLDER), *sinks)
        self._last_report: LearnerReport | None = None
        self._last_env_steps = -1
        # By policy version: a Redis that was killed may forget the newest, which is then recorded and read once more.
        self._evaluations: dict[int, Evaluation] = {}
        self._evaluation_cursor = "0-0"
        self._csv_is_due = False
        # Events of earlier sessions are in their own files; only new reports are written.
        self._report_cursor = "0-0"
        self._flushed: _Cursors | None = None
        self._began = time.monotonic()
        self._earlier_seconds = _recorded_seconds(run_dir / SUMMARY_FILE)
        self._online_since: tuple[float, int, int] | None = None
        self._online_rates: tuple[float, float] | None = None

    def skip_recorded_reports(self) -> None:
        """Leave what earlier sessions recorded out of the event files, where it is already.

        What came while nobody recorded is not left out: a Redis of one's own, and the learner, go on without us.
        """
        recorded = _recorded_cursors(self._run_dir / CURSORS_FILE)
        for cursor, report in self._reports.learner_reports():
            if recorded is not None and _order(cursor) > _order(recorded.reports):
                break
            self._report_cursor = cursor
            self._last_report = report
        for cursor, evaluation in self._reports.evaluations():
            if recorded is not None and _order(cursor) > _order(recorded.evaluations):
                break
            self._evaluation_cursor = cursor
            self._evaluations[evaluation.policy_version] = evaluation
        if self._evaluations:
            self._write_csv()

    def update(self, state: RunState, actors: list[ActorLedger], *, status: str = "running") -> None:
        """Take in new reports and bring all files up to date.

        Raises:
            OSError: for instance that the disk is full; called again, it goes on without losing or repeating a point.
                A process that is killed just then may have its last points written twice by the next one.
        """
        for cursor, evaluation in self._reports.evaluations(self._evaluation_cursor):
            self._evaluation_cursor = cursor
            is_new = evaluation.policy_version not in self._evaluations
            self._evaluations[evaluation.policy_version] = evaluation
            if is_new:
                self._log(evaluation_point(evaluation))
            self._csv_is_due = True
        if self._csv_is_due:
            self._write_csv()
            self._csv_is_due = False  # not before it is written: on a full disk this method is called again
        for cursor, report in self._reports.learner_reports(self._report_cursor):
            self._report_cursor = cursor
            self._log(learner_point(report, self._last_report))
            self._last_report = report
        if state.env_steps != self._last_env_steps:
            self._last_env_steps = state.env_steps
            self._log(run_point(state, actors, unix_seconds=time.time()))
        for sink in self._sinks:
            sink.flush()
        cursors = _Cursors(self._report_cursor, self._evaluation_cursor)
        if cursors != self._flushed:
            path = self._run_dir / CURSORS_FILE
            path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have cleared the events away
            write_json(path, asdict(cursors))
            self._flushed = cursors
        summary = make_summary(
            self._identity,
            status,
            state,
            actors,
            list(self._evaluations.values()),
            wall_seconds=self._earlier_seconds + time.monotonic() - self._began,
            rates=self._rates(state),
        )
        write_json(self._run_dir / SUMMARY_FILE, summary)

    def close(self) -> None:
        """Flush what was logged."""
        for sink in self._sinks:
            sink.close()

    def _log(self, point: Point) -> None:
        for sink in self._sinks:
            sink.write(point)

    def _rates(self, state: RunState) -> tuple[float, float]:
        if state.online_grad_steps == 0 and state.env_steps == 0:
            return 0.0, 0.0
        now = time.monotonic()
        if self._online_since is None:
            self._online_since = (now, state.env_steps, state.grad_steps)
        began, env_steps, grad_steps = self._online_since
        seconds = now - began
        if seconds < 1e-3:
            return 0.0, 0.0
        if state.phase is Phase.FINISHED and self._online_rates is not None:
            return self._online_rates  # the last evaluation takes time, but no steps
        self._online_rates = (state.env_steps - env_steps) / seconds, (state.grad_steps - grad_steps) / seconds
        return self._online_rates

    def _write_csv(self) -> None:
        path = self._run_dir / EVALUATIONS_FILE
        partial = path.with_name(f"{path.name}.partial")
        names = ["env", "preset", "seed", *(item.name for item in fields(Evaluation))]
        identity = {"env": self._identity.env, "preset": self._identity.preset, "seed": self._identity.seed}
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            for evaluation in self._evaluations.values():
                writer.writerow({**identity, **asdict(evaluation)})
        os.replace(partial, path)


@dataclass(frozen=True, slots=True)
class _Cursors:
    """Entry ids of two streams."""

    reports: str
    evaluations: str


def _recorded_cursors(path: Path) -> _Cursors | None:
    """None where nobody wrote them: by an earlier version, everything that is in Redis was recorded."""
    try:
        found = _Cursors(**json.loads(path.read_text(encoding="utf-8")))
        for entry_id in (found.reports, found.evaluations):
            _order(entry_id)  # refuses what is none
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return found


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def _recorded_seconds(path: Path) -> float:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["wall_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
