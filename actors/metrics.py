"""Prometheus metrics of the actors and of the evaluator."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_APPEND_BUCKETS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5, 1.0, 5.0)


@dataclass(frozen=True, slots=True)
class ActorMetrics:
    """What one actor exposes."""

    env_steps: Counter
    episodes: Counter
    successes: Counter
    resent_messages: Counter
    append_seconds: Histogram
    episode_return: Gauge
    policy_version: Gauge
    weight_age_seconds: Gauge
    weights_published: Gauge

    @staticmethod
    def register(registry: CollectorRegistry, actor_id: int) -> ActorMetrics:
        """Create the metrics of an actor in a registry; every series carries the label `actor`."""
        labels = ["actor"]

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, labels, registry=registry).labels(actor_id)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry).labels(actor_id)

        return ActorMetrics(
            env_steps=counter("awac_actor_env_steps_total", "Environment steps acknowledged by the replay service."),
            episodes=counter("awac_actor_episodes_total", "Training episodes ended."),
            successes=counter("awac_actor_successes_total", "Training episodes that met the goal at any step."),
            resent_messages=counter("awac_actor_resent_messages_total", "Messages sent again: Redis had lost them."),
            append_seconds=Histogram(
                "awac_actor_append_seconds",
                "Time of one append, from encoding to the answer.",
                labels,
                registry=registry,
                buckets=_APPEND_BUCKETS_S,
            ).labels(actor_id),
            episode_return=gauge("awac_actor_episode_return", "Return of the newest training episode."),
            policy_version=gauge("awac_actor_policy_version", "Version of the weights that act."),
            weight_age_seconds=gauge("awac_actor_weight_age_seconds", "Age of the acting weights, at each rollout."),
            weights_published=gauge(
                "awac_actor_weights_published_timestamp_seconds",
                "When the acting weights were published, in Unix time.",
            ),
        )


@dataclass(frozen=True, slots=True)
class EvaluatorMetrics:
    """What the evaluator exposes."""

    evaluations: Counter
    seconds: Histogram
    success_rate: Gauge
    episode_return: Gauge
    episode_length: Gauge
    policy_version: Gauge
    env_steps: Gauge

    @staticmethod
    def register(registry: CollectorRegistry) -> EvaluatorMetrics:
        """Create the metrics of the evaluator in a registry."""
        success_rate = Gauge(
            "awac_evaluation_success_ratio",
            "Success of the newest evaluation: at any step, at the last step, share of all steps.",
            ["kind"],
            registry=registry,
        )
        return EvaluatorMetrics(
            evaluations=Counter("awac_evaluations_total", "Policy versions evaluated.", registry=registry),
            seconds=Histogram(
                "awac_evaluation_seconds",
                "Time of one evaluation.",
                registry=registry,
                buckets=(0.5, 1, 2, 5, 10, 20, 50, 100, 300),
            ),
            success_rate=success_rate,
            episode_return=Gauge(
                "awac_evaluation_episode_return", "Mean return, newest evaluation.", registry=registry
            ),
            episode_length=Gauge(
                "awac_evaluation_episode_length_steps",
                "Mean length of an episode, newest evaluation.",
                registry=registry,
            ),
            policy_version=Gauge("awac_evaluation_policy_version", "Version judged last.", registry=registry),
            env_steps=Gauge(
                "awac_evaluation_env_steps",
                "Online environment steps behind the version judged last.",
                registry=registry,
            ),
        )
