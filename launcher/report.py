"""`launcher report`: one HTML page about a run that holds everything in itself and asks no other host for anything."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launcher.curve_axes import Metric
from launcher.learning_curves import EvaluationsError, make_curves, read_evaluations
from launcher.plot import draw_curves
from launcher.report_pictures import draw_learner, draw_throughput, rates_over_time
from launcher.run_connection import redis_of
from launcher.run_directory import RunDirectory
from launcher.run_summary import read_summary
from launcher.whole_file import whole_file
from launcher.wording import duration, percent
from replay_service.config import RunConfig
from replay_service.config_file import load_run_config
from replay_service.connection import TRANSIENT_ERRORS
from replay_service.errors import RedisUnavailable, RunDirectoryError
from replay_service.keys import Keys
from replay_service.records import EVALUATIONS_FILE, unaccounted_steps
from replay_service.reports import ActorLedger, LearnerReport, Reports
from replay_service.run_state import RunState

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_VIDEO_BYTES = 40_000_000
_MOST_WARNINGS = 100
_SHOWN_METRICS: tuple[Metric, ...] = ("success_final", "episode_return")
_FACTS = (
    ("env", "environment"),
    ("preset", "preset"),
    ("seed", "seed"),
    ("run_id", "run"),
    ("phase", "phase"),
    ("env_steps", "online environment steps"),
    ("grad_steps", "gradient steps"),
    ("episodes", "training episodes"),
    ("policy_version", "policy version"),
    ("utd_ratio", "measured gradient steps an environment step"),
    ("seed_steps", "transitions of the offline dataset"),
    ("env_steps_per_second", "environment steps a second, last session"),
    ("grad_steps_per_second", "gradient steps a second, last session"),
)


_UNREADABLE: tuple[type[Exception], ...] = (RunDirectoryError, RedisUnavailable, OSError, *TRANSIENT_ERRORS)


class Embedded(NamedTuple):
    """A picture or a film inside the page."""

    alt: str
    uri: str
    """data: and the content."""


class Content(NamedTuple):
    """A table."""

    names: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class FromRedis:
    """What only the run's Redis knows."""

    state: RunState
    actors: list[ActorLedger]
    reports: list[LearnerReport]


def write_report(directory: RunDirectory, output: Path) -> list[str]:
    """Write the page; a reader never sees half of it.

    Args:
        directory: the run, up or stopped.
        output: HTML file to write.

    Returns:
        What is missing in the page, and why.

    Raises:
        ConfigError: the page cannot be written, or the run's configuration is damaged.
    """
    config = load_run_config(directory.config)
    try:
        with redis_of(directory, config) as client:
            reports = Reports(client, Keys(config.run_id))
            state, actors = reports.state_and_actors()
            found: FromRedis | None = FromRedis(state, actors, [r for _cursor, r in reports.learner_reports()])
            missing = ""
    except _UNREADABLE as error:
        found, missing = None, f"The run's Redis cannot be read: {error}"
    page = render(directory, config, found, missing)
    with whole_file(output) as partial:
        partial.write_text(page, encoding="utf-8")
    return [missing] if missing else []


def render(directory: RunDirectory, config: RunConfig, found: FromRedis | None, no_redis: str) -> str:
    """The page as text.

    Args:
        directory: the run's files.
        config: its configuration.
        found: what its Redis knows, or None.
        no_redis: why that is missing.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    summary, damage = read_summary(directory)
    curves, curve_problems = _curves(directory)
    videos, left_out = _videos(directory.videos)
    reports = found.reports if found else []
    rates = rates_over_time(reports)
    return environment.get_template("report.html.j2").render(
        title=f"{config.env}, {config.preset}, seed {config.seed}: {directory.path.resolve().name}",
        status=_status(directory, summary),
        written=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        program_version=version("awac-online"),
        facts=_facts(summary),
        problems=[*([damage] if damage else []), *curve_problems],
        curves=curves,
        evaluations=_evaluations(summary),
        videos=videos,
        videos_left_out=left_out,
        throughput=_drawn("rates over time", lambda path: draw_throughput(rates, path)) if rates else None,
        learner=_drawn("metrics of the learner", lambda path: draw_learner(reports, path)) if reports else None,
        ledger=_ledger(found.actors if found else []),
        accounts=_accounts(found) if found else None,
        restarts=_restarts(summary, found),
        warnings=_warnings(directory.launcher_log),
        config=directory.config.read_text(encoding="utf-8"),
        no_redis=no_redis,
    )


def _status(directory: RunDirectory, summary: dict[str, Any]) -> str:
    status = str(summary.get("status", "has no summary yet"))
    if directory.holder() is None and status == "running":
        status = _status_without_launcher(directory)
    elapsed = summary.get("wall_seconds")
    return f"{status}, up for {duration(float(elapsed))}" if isinstance(elapsed, int | float) else status


def _status_without_launcher(directory: RunDirectory) -> str:
    try:
        return "running, without a launcher here" if directory.has_roles() else "interrupted"
    except RunDirectoryError:  # the records can be read all the same
        return "running or interrupted, without a launcher here"


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    return [(words, _number(summary[name])) for name, words in _FACTS if summary.get(name) is not None]


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _curves(directory: RunDirectory) -> tuple[list[Embedded], list[str]]:
    if not (directory.path / EVALUATIONS_FILE).exists():
        return [], []
    try:
        rows = read_evaluations(directory.path)
    except EvaluationsError as error:
        return [], [str(error)]
    drawn = []
    for metric in _SHOWN_METRICS:
        if all(getattr(row, metric) is not None for row in rows):
            curves = make_curves(rows, metric=metric, axis="env_steps")

            def draw(path: Path, curves: Any = curves, metric: Metric = metric) -> None:
                draw_curves(curves, path, metric=metric, axis="env_steps")

            drawn.append(_drawn(f"{metric} over online environment steps", draw))
    return drawn, []


def _evaluations(summary: dict[str, Any]) -> Content:
    names = ("environment steps", "gradient steps", "version", "success any", "final", "of steps", "return", "episodes")
    listed = summary.get("evaluations")
    rows = [
        (
            _number(item.get("env_steps", "-")),
            _number(item.get("grad_steps", "-")),
            str(item.get("policy_version", "-")),
            _share(item.get("success_any")),
            _share(item.get("success_final")),
            _share(item.get("success_fraction")),
            f"{score:.1f}" if isinstance(score := item.get("episode_return"), int | float) else "-",
            str(item.get("episodes", "-")),
        )
        for item in (listed if isinstance(listed, list) else [])
        if isinstance(item, dict)
    ]
    return Content(names, rows)


def _share(value: object) -> str:
    return percent(value if isinstance(value, int | float) else None)


def _ledger(actors: Sequence[ActorLedger]) -> Content:
    names = ("actor", "steps stored", "duplicates refused", "in quarantine", "episodes", "successful", "last return",
             "policy version", "incarnation", "restarts")  # fmt: skip
    rows = [
        (
            str(actor.actor_id),
            f"{actor.stored_steps:,}",
            f"{actor.duplicate_steps:,}",
            f"{actor.quarantined_steps:,}",
            f"{actor.episodes:,}",
            f"{actor.successes:,}",
            "-" if actor.last_return is None else f"{actor.last_return:.1f}",
            str(actor.policy_version),
            str(actor.epoch),
            str(actor.restarts),
        )
        for actor in actors
    ]
    return Content(names, rows)


def _accounts(found: FromRedis) -> dict[str, Any]:
    unaccounted = unaccounted_steps(found.state, found.actors)
    text = (
        f"{found.state.env_steps:,} steps counted by the run; {unaccounted:,} of them in no actor's account. "
        "The command launcher doctor proves it from the data themselves."
    )
    return {"sound": unaccounted == 0, "text": text}


def _restarts(summary: dict[str, Any], found: FromRedis | None) -> str:
    if found is not None:
        return f"{found.state.actor_restarts} of actors, {found.state.learner_restarts} of the learner."
    if "actor_restarts" in summary:
        return f"{summary['actor_restarts']} of actors, {summary.get('learner_restarts', '?')} of the learner."
    return "Not known."


def _warnings(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if " WARNING " in line or " ERROR " in line][-_MOST_WARNINGS:]


def _videos(folder: Path) -> tuple[list[Embedded], list[str]]:
    """The newest films that fit, newest first, and the names of those that do not."""
    # A name that begins with a dot is half a film, which `launcher video` is at, or has left when it was killed.
    whole = (path for path in folder.glob("*.mp4") if not path.name.startswith("."))
    films = sorted(whole, key=lambda path: path.stat().st_mtime, reverse=True)
    embedded, left_out, room = [], [], _MOST_VIDEO_BYTES
    for path in films:
        size = path.stat().st_size
        if size > room:
            left_out.append(path.name)
            continue
        room -= size
        embedded.append(Embedded(path.name, _data_uri("video/mp4", path.read_bytes())))
    return embedded, left_out


def _drawn(alt: str, draw: Callable[[Path], None]) -> Embedded:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.svg"
        draw(path)
        return Embedded(alt, _data_uri("image/svg+xml", path.read_bytes()))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
