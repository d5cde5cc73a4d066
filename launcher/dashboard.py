"""The live screen: a run at a glance, laid out for the terminal it finds, from 80 x 24 on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launcher.concerns import concerns
from launcher.rates import BAR_SECONDS, Rates, rate_history
from launcher.snapshot import RedisMemory, Snapshot
from launcher.wording import age, counted, describe_trend, duration, mebibytes, percent, rate, sparkline, waits
from replay_service.reports import ActorLedger, Evaluation
from replay_service.run_state import Phase

_LABEL_WIDTH = 11
_FEWEST_EVALUATIONS = 3
_MOST_CONCERNS = 4
_SUMMARY_ROWS = 5
_FEWEST_NAMED = 3
_MOST_NAMED = 10
_RATES_TEXT_WIDTH = 52
"""Columns of the line of rates that the words take; the rest is for two history lines."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A snapshot as a screen; Rich renders it for the width and height of its console."""

    snapshot: Snapshot
    rates: Rates
    title: str
    notice: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # A line below the screen stays free, so that the terminal does not scroll.
        width, height = options.max_width, max(24, console.size.height) - 1
        yield Text(self.title, style="bold", no_wrap=True, overflow="crop")
        bar = Table.grid()  # a bar alone ends without a line feed
        bar.add_row(ProgressBar(total=1.0, completed=self.snapshot.progress()[0], width=width))
        yield bar
        facts = _facts(self.snapshot, self.rates, width, options.ascii_only)
        for name, text in facts:
            yield _fact(name, text, options)
        warnings = ([self.notice] if self.notice else []) + concerns(self.snapshot)
        for text in warnings[:_MOST_CONCERNS]:
            yield _fact("warning", text, options, style="yellow")
        left = height - 2 - len(facts) - min(len(warnings), _MOST_CONCERNS)
        evaluations, actors = _share_rows(
            left, len(self.snapshot.evaluations), len(self.snapshot.staying) if _shows_actors(self.snapshot) else 0
        )
        if evaluations:
            yield evaluation_table(self.snapshot.evaluations[-evaluations:])
        if actors:
            yield from _actor_part(self.snapshot, self.rates, actors)


def _shows_actors(snapshot: Snapshot) -> bool:
    return snapshot.state.phase in (Phase.ONLINE, Phase.FINISHED)


def _share_rows(rows: int, evaluations: int, actors: int) -> tuple[int, int]:
    """Rows for evaluations and for actors, each table's header paid for.

    Actors get a row each while three evaluations remain beside them, and rows for a summary otherwise.
    """
    if not actors:
        return min(evaluations, max(0, rows - 1)), 0
    fewest = min(evaluations, _FEWEST_EVALUATIONS)
    free = rows - 1 - (fewest + 1 if evaluations else 0)
    for_actors = actors if actors <= free else min(max(_SUMMARY_ROWS, free), _SUMMARY_ROWS + 2 + _MOST_NAMED)
    if not evaluations:
        return 0, for_actors
    return min(evaluations, rows - 2 - for_actors), for_actors


def _fact(name: str, text: str, options: ConsoleOptions, style: str = "") -> Text:
    line = Text(name.ljust(_LABEL_WIDTH), style="dim", no_wrap=True)
    room = options.max_width - _LABEL_WIDTH
    if len(text) > room:
        dots = "..." if options.ascii_only else "…"
        text = text[: room - len(dots)] + dots
    return line.append(text, style=style or "not dim")


def _facts(snapshot: Snapshot, rates: Rates, width: int, ascii_only: bool) -> list[tuple[str, str]]:
    state = snapshot.state
    left = rates.seconds_left(snapshot)
    facts = [
        ("phase", snapshot.progress()[1] + (f", {duration(left)} left" if left is not None else "")),
        ("rates", _describe_rates(snapshot, rates, width, ascii_only)),
        ("utd ratio", _describe_ratio(snapshot)),
        ("waiting", waits(snapshot) or "-"),
        ("replay", _describe_replay(snapshot)),
        ("redis", _describe_memory(snapshot.memory)),
        ("policy", _describe_policy(snapshot)),
        ("actors", _describe_actors(snapshot)),
    ]
    if snapshot.evaluations:
        waiting = state.evaluations_waiting
        queued = f", {waiting} to come" if waiting > 0 else ""
        facts.append(("evaluated", describe_trend(snapshot.evaluations, ascii_only=ascii_only) + queued))
    return facts


def _describe_rates(snapshot: Snapshot, rates: Rates, width: int, ascii_only: bool) -> str:
    bars = max(0, min(30, (width - _LABEL_WIDTH - _RATES_TEXT_WIDTH) // 2))

    def line(counter: str) -> str:
        history = rate_history(snapshot.reports, counter, bars=bars)
        return sparkline(history, ascii_only=ascii_only) if any(item is not None for item in history) else ""

    env, grad = line("env_steps"), line("grad_steps")
    parts = [f"{rate(rates.env_rate)} env steps/s {env}", f"{rate(rates.grad_rate)} gradient steps/s {grad}"]
    span = f"({bars * BAR_SECONDS:.0f} s)" if env or grad else ""
    return "  ".join([*(part.rstrip() for part in parts), span]).rstrip()


def _describe_ratio(snapshot: Snapshot) -> str:
    state = snapshot.state
    measured, band = state.measured_utd_ratio, state.utd_band
    if measured is None or band is None:
        return f"- (to be held at {state.utd_ratio:g})"
    text = f"{measured:.2f}, band {band[0]:.2f} to {band[1]:.2f}"
    if state.phase is Phase.ONLINE:
        ahead = max(0.0, state.env_steps_ahead)
        text += f"; actors {ahead:,.0f} of {state.tolerance_env_steps:,} steps ahead"
    return text


def _describe_replay(snapshot: Snapshot) -> str:
    state = snapshot.state
    text = f"{state.seed_steps:,} seed + {state.retained_steps:,} online transitions"
    share = snapshot.report.metrics.get("offline_ratio") if snapshot.report is not None else None
    return text if share is None else f"{text}, {percent(share)} of a batch offline"


def _describe_memory(memory: RedisMemory | None) -> str:
    if memory is None:
        return "-"
    used = f"{mebibytes(memory.used_bytes)} MiB"
    if memory.ratio is None:
        return f"{used} in memory, no limit"
    return f"{used} of {mebibytes(memory.limit_bytes)} MiB ({percent(memory.ratio)})"


def _describe_policy(snapshot: Snapshot) -> str:
    state = snapshot.state
    if not state.policy_version:
        return "none published yet"
    text = f"version {state.policy_version:,}, {age(snapshot.weight_age_s(state.policy_version))} old"
    acting = [a.policy_version for a in snapshot.staying if snapshot.is_alive(a) and a.policy_version]
    if state.phase is not Phase.ONLINE or not acting:
        return text
    oldest = age(snapshot.weight_age_s(min(acting)))
    return f"{text}; actors up to {state.policy_version - min(acting)} behind, {oldest} old"


def _describe_actors(snapshot: Snapshot) -> str:
    state = snapshot.state
    text = f"{snapshot.actors_alive} of {len(snapshot.staying)} alive, {state.episodes:,} episodes"
    if state.episodes:
        text += f", {percent(state.successes / state.episodes)} successful"
    return text + (f", {counted(state.actor_restarts, 'restart')}" if state.actor_restarts else "")


def evaluation_table(evaluations: list[Evaluation]) -> Table:
    """Evaluations as a table, a row each."""
    table = _table("env steps", "gradient steps", "version", "success any", "final", "of steps", "return")
    for item in evaluations:
        table.add_row(
            f"{item.env_steps:,}",
            f"{item.grad_steps:,}",
            str(item.policy_version),
            percent(item.success_any),
            percent(item.success_final),
            percent(item.success_fraction),
            f"{item.episode_return:.1f}",
        )
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=False, collapse_padding=False)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


# Actors


def _actor_part(snapshot: Snapshot, rates: Rates, rows: int) -> list[RenderableType]:
    if len(snapshot.staying) <= rows:
        return [_actor_table(snapshot.staying, snapshot, rates)]
    parts: list[RenderableType] = [_actor_summary(snapshot, rates)]
    named = rows - _SUMMARY_ROWS - 2  # the header and the line above it
    if named >= _FEWEST_NAMED:
        chosen = worth_a_look(snapshot, rates, named)
        parts.append(Text(f"the {named} of them to look at first", style="dim"))
        parts.append(_actor_table(chosen, snapshot, rates))
    return parts


def worth_a_look(snapshot: Snapshot, rates: Rates, count: int) -> list[ActorLedger]:
    """The actors that a user would look at first: silent ones, then often restarted ones, then the slowest."""
    ranked = sorted(
        snapshot.staying,
        key=lambda actor: (
            snapshot.is_alive(actor),
            -actor.restarts,
            rates.actor_rates.get(actor.actor_id, 0.0),
            actor.actor_id,
        ),
    )
    return sorted(ranked[:count], key=lambda actor: actor.actor_id)


def _actor_table(actors: Sequence[ActorLedger], snapshot: Snapshot, rates: Rates) -> Table:
    table = _table("actor", "steps/s", "steps", "episodes", "success", "return", "weights", "restarts")
    for actor in actors:
        last = "-" if actor.last_return is None else f"{actor.last_return:.1f}"
        table.add_row(
            f"{actor.actor_id}" if snapshot.is_alive(actor) else f"silent {actor.actor_id}",
            rate(rates.actor_rates.get(actor.actor_id, 0.0)),
            f"{actor.stored_steps:,}",
            f"{actor.episodes:,}",
            percent(_success(actor)),
            last,
            age(snapshot.weight_age_s(actor.policy_version)),
            str(actor.restarts),
        )
    return table


def _actor_summary(snapshot: Snapshot, rates: Rates) -> Table:
    """Lowest, median and highest value over all actors, and whose the extremes are."""
    table = _table(f"{len(snapshot.staying)} actors", "lowest", "of actor", "median", "highest", "of actor")
    quantities: list[tuple[str, Callable[[ActorLedger], float | None], Callable[[float], str]]] = [
        ("steps/s", lambda a: rates.actor_rates.get(a.actor_id, 0.0), rate),
        ("episodes", lambda a: float(a.episodes), lambda v: f"{v:,.0f}"),
        ("success", _success, percent),
        ("age of weights", lambda a: snapshot.weight_age_s(a.policy_version), age),
        ("restarts", lambda a: float(a.restarts), lambda v: f"{v:.0f}"),
    ]
    for name, of_actor, write in quantities:
        found = [(value, a.actor_id) for a in snapshot.staying if (value := of_actor(a)) is not None]
        if not found:
            table.add_row(name, "-", "-", "-", "-", "-")
            continue
        low, high = min(found), max(found, key=lambda pair: (pair[0], -pair[1]))
        median = statistics.median(value for value, _actor in found)
        table.add_row(name, write(low[0]), str(low[1]), write(median), write(high[0]), str(high[1]))
    return table


def _success(actor: ActorLedger) -> float | None:
    return actor.successes / actor.episodes if actor.episodes else None
