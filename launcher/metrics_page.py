"""`docs/metrics.md` from the code: `python -m launcher.metrics_page docs/metrics.md`.

The metrics are read off the registries that the roles themselves fill, so the page cannot say anything else than them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from actors.metrics import ActorMetrics, EvaluatorMetrics
from replay_service.metrics import RunReading, register_run_metrics
from replay_service.reports import Evaluation
from replay_service.run_state import Phase, RunState
from replay_service.waits import WaitSeconds

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
_MOST_VALUES = 6

_HEAD = """# Metrics

Made by `python -m launcher.metrics_page docs/metrics.md`; a test compares it with the code.

Every process of a run serves its own metrics; [the dashboards](dashboard.md) say how Prometheus finds them. Service
discovery gives each series the labels `run`, `env`, `role` and `process`; the labels below stand beside these. Each
process also has the usual `process_*` metrics: CPU time, memory, open files, start time.
"""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric as the page shows it."""

    series: tuple[str, ...]
    """Names as Prometheus stores them."""
    kind: str
    """counter, gauge or histogram."""
    labels: tuple[tuple[str, tuple[str, ...]], ...]
    """Label name -> its values, where they are a closed set."""
    text: str


def role_registries() -> dict[str, CollectorRegistry]:
    """A registry of each role, filled as the role fills it, with every optional metric present."""
    from learner.metrics import LearnerMetrics  # loads torch

    registries = {name: CollectorRegistry() for name in ("replay", "learner", "actor", "evaluator")}
    register_run_metrics(registries["replay"], _whole_reading)
    learner = LearnerMetrics.register(registries["learner"])
    for origin in ("seed", "online"):
        learner.mirror_transitions.labels(origin)
    ActorMetrics.register(registries["actor"], 0)
    evaluator = EvaluatorMetrics.register(registries["evaluator"])
    for kind in ("any", "final", "fraction"):
        evaluator.success_rate.labels(kind)
    for role, registry in registries.items():
        WaitSeconds.register(registry, role)
    return registries


def rows(registry: CollectorRegistry) -> list[MetricRow]:
    """The metrics of a registry, by name."""
    return sorted((_row(metric) for metric in registry.collect()), key=lambda row: row.series)


def series_names() -> set[str]:
    """Every name under which Prometheus can hold something of a run."""
    return {name for registry in role_registries().values() for row in rows(registry) for name in row.series}


def page() -> str:
    """The text of `docs/metrics.md`."""
    return "\n".join([_HEAD, *(line for part in role_registries().items() for line in _section(*part))])


def _section(role: str, registry: CollectorRegistry) -> Iterator[str]:
    yield f"## {role}\n"
    yield "| metric | type | labels | meaning |"
    yield "| --- | --- | --- | --- |"
    for row in rows(registry):
        name = f"`{row.series[0]}`" if len(row.series) == 1 else f"`{row.series[0].removesuffix('_bucket')}`"
        labels = ", ".join(_describe_label(*label) for label in row.labels) or "-"
        yield f"| {name} | {row.kind} | {labels} | {row.text} |"
    yield ""


def _describe_label(name: str, values: tuple[str, ...]) -> str:
    if name == "actor":
        return "`actor`"
    if len(values) > _MOST_VALUES:
        return f"`{name}` ({len(values)} values)"
    return f"`{name}` ({', '.join(values)})"


def _row(metric: Metric) -> MetricRow:
    values: dict[str, dict[str, None]] = {}
    for sample in metric.samples:
        if not sample.name.endswith("_created"):
            for name, value in sample.labels.items():
                if name != "le":
                    values.setdefault(name, {})[value] = None
    series = tuple(metric.name + suffix for suffix in _SUFFIXES.get(metric.type, ("",)))
    labels = tuple((name, tuple(found)) for name, found in values.items())
    return MetricRow(series, metric.type, labels, metric.documentation)


def _whole_reading() -> RunReading:
    """A reading in which nothing is missing."""
    state = replace(RunState.from_hash({}), phase=Phase.ONLINE, env_steps=2, online_grad_steps=1, utd_ratio=1.0)
    judged = Evaluation(1, 0, 1, 0.5, 0.5, 0.5, 0.0, 1.0, 1, 1.0, 0.0)
    return RunReading(
        state,
        memory_bytes=1,
        memory_limit_bytes=2,
        oldest_unix_seconds=1.0,
        published_unix_seconds=1.0,
        offline_evaluation=judged,
    )


def main(arguments: list[str]) -> int:
    """Write the page to the file named, or to stdout."""
    if len(arguments) > 1:
        sys.stderr.write("usage: python -m launcher.metrics_page [FILE]\n")
        return 2
    if arguments:
        Path(arguments[0]).write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
