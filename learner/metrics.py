"""Prometheus metrics of the learner."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge

from learner.update import UpdateMetrics


@dataclass(frozen=True, slots=True)
class LearnerMetrics:
    """What the learner exposes."""

    grad_steps: Counter
    samples: Counter
    ingested_steps: Counter
    publications: Counter
    checkpoints: Counter
    policy_version: Gauge
    mirror_transitions: Gauge
    offline_ratio: Gauge
    update: Gauge

    @staticmethod
    def register(registry: CollectorRegistry) -> LearnerMetrics:
        """Create the learner's metrics in a registry."""
        update = Gauge(
            "awac_learner_update",
            "Means of the gradient steps since the last report, by quantity (see docs/awac.md).",
            ["quantity"],
            registry=registry,
        )
        for name in UpdateMetrics._fields:
            update.labels(name)
        return LearnerMetrics(
            grad_steps=Counter("awac_learner_grad_steps_total", "Gradient steps of this process.", registry=registry),
            samples=Counter("awac_learner_samples_total", "Transitions sampled by this process.", registry=registry),
            ingested_steps=Counter(
                "awac_learner_ingested_steps_total", "Online steps taken into the mirror.", registry=registry
            ),
            publications=Counter("awac_learner_publications_total", "Policy versions published.", registry=registry),
            checkpoints=Counter("awac_learner_checkpoints_total", "Checkpoints written.", registry=registry),
            policy_version=Gauge("awac_learner_policy_version", "Newest version published.", registry=registry),
            mirror_transitions=Gauge(
                "awac_learner_mirror_transitions",
                "Transitions that batches are drawn from, by origin.",
                ["origin"],
                registry=registry,
            ),
            offline_ratio=Gauge(
                "awac_learner_offline_ratio", "Expected share of seed data in a batch.", registry=registry
            ),
            update=update,
        )
