"""Our two dashboards: one run, and its actors."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Query, Row

_RUN = 'run="$run_id"'
_OVERVIEW_UID = "awac-run"
_FLEET_UID = "awac-fleet"


def series(metric: str, matchers: str = "") -> str:
    """A selector of a metric of the chosen run."""
    return f"{metric}{{{_RUN}{', ' + matchers if matchers else ''}}}"


def per_second(metric: str, matchers: str = "") -> str:
    """The rate of a counter, over the range that fits the scrape interval and the zoom."""
    return f"rate({series(metric, matchers)}[$__rate_interval])"


def update(quantity: str, legend: str = "") -> Query:
    """One of the learner's means over gradient steps."""
    return Query(expr=series("awac_learner_update", f'quantity="{quantity}"'), legend=legend or quantity)


def quantiles(expr: str) -> tuple[Query, ...]:
    """Lowest, median and highest of a vector over actors."""
    return tuple(
        Query(expr=f"quantile({q}, {expr})", legend=name)
        for q, name in ((0, "lowest"), (0.5, "median"), (1, "highest"))
    )


def latency(expr_rate: str) -> tuple[Query, ...]:
    """Median and 99th percentile from the buckets of a histogram."""
    return tuple(
        Query(expr=f"histogram_quantile({q}, sum by (le) ({expr_rate}))", legend=name)
        for q, name in ((0.5, "median"), (0.99, "99th percentile"))
    )


_ACTORS_UP = series("up", 'role="actor"')
_WEIGHT_AGE = f"time() - ({series('awac_actor_weights_published_timestamp_seconds')} > 0)"
_LAG = f"scalar({series('awac_replay_policy_version')}) - ({series('awac_actor_policy_version')} > 0)"
_SAMPLES_PER_INSERT = f"{per_second('awac_learner_samples_total')} / {per_second('awac_learner_ingested_steps_total')}"
_BACKLOG = f"{series('awac_replay_evaluation_requests_total')} - {series('awac_replay_evaluations_total')}"
_WAITS = "awac_wait_seconds_total"
_LEARNER_WAITS = Query(expr=per_second(_WAITS, 'role="learner"'), legend="learner, for {{reason}}")
_ACTORS_WAITING = per_second(_WAITS, 'role="actor"')
_ACTOR_WAITS = Query(expr=f"avg by (reason) ({_ACTORS_WAITING})", legend="mean actor, for {{reason}}")


def _stat(title: str, description: str, unit: str, expr: str, **options: float) -> Panel:
    return Panel(
        title=title, description=description, unit=unit, queries=(Query(expr=expr),), kind="stat", width=3, height=4,
        warn_above=options.get("warn_above"),
    )  # fmt: skip


_LEARNING = Row(
    title="Learning curve",
    panels=(
        Panel(
            title="Success of evaluations",
            description="Share of evaluation episodes that met the goal, mean action, fixed seeds; and, level, what "
            "pretraining handed over.",
            unit="percentunit",
            minimum=0,
            maximum=1,
            width=12,
            height=10,
            queries=(
                Query(expr=series("awac_evaluation_success_ratio"), legend="{{kind}}"),
                Query(expr=series("awac_replay_offline_success_ratio", 'kind="any"'), legend="any, after pretraining"),
            ),
        ),
        Panel(
            title="Return",
            description="Mean return of the newest evaluation, what pretraining handed over, and the mean over actors "
            "of their newest training episode, exploration included.",
            unit="short",
            width=6,
            height=10,
            queries=(
                Query(expr=series("awac_evaluation_episode_return"), legend="evaluation"),
                Query(expr=series("awac_replay_offline_episode_return"), legend="after pretraining"),
                Query(expr=f"avg({series('awac_actor_episode_return')})", legend="training"),
            ),
        ),
        Panel(
            title="Steps behind the evaluated policy",
            description="The x axis of a learning curve: env steps that the evaluated policy's updates were owed to, "
            "and those stored.",
            unit="short",
            minimum=0,
            width=6,
            height=10,
            queries=(
                Query(expr=series("awac_evaluation_env_steps"), legend="evaluated"),
                Query(expr=series("awac_replay_env_steps_total"), legend="stored"),
                Query(expr=series("awac_replay_budget_steps"), legend="budget"),
            ),
        ),
    ),
)

_STATE = Row(
    title="State",
    panels=(
        Panel(
            title="Phase",
            description="seeding, pretraining, online or finished.",
            unit="short",
            kind="stat",
            text_mode="name",
            width=3,
            height=4,
            queries=(Query(expr=f"{series('awac_replay_phase')} == 1", legend="{{phase}}"),),
        ),
        _stat(
            "Progress", "Env steps stored, as a share of the budget.", "percentunit",
            f"{series('awac_replay_env_steps_total')} / {series('awac_replay_budget_steps')}",
        ),
        _stat("Policy version", "Newest published version.", "short", series("awac_replay_policy_version")),
        _stat(
            "Since publication", "Age of the newest policy version.", "s",
            f"time() - {series('awac_replay_policy_published_timestamp_seconds')}", warn_above=300,
        ),
        _stat(
            "Actors", "Actors that answer Prometheus.", "short", f"count({_ACTORS_UP} == 1)"
        ),
        _stat(
            "Restarts", "Crashed actors and learners that were replaced.", "short",
            f"{series('awac_replay_actor_restarts_total')} + {series('awac_replay_learner_restarts_total')}",
            warn_above=1,
        ),
        _stat(
            "Quarantine", "Messages put aside as malformed.", "short",
            series("awac_replay_quarantined_messages_total"), warn_above=1,
        ),
        _stat(
            "Redis limit used", "Share of its limit; at 100 % Redis refuses writes.", "percentunit",
            f"{series('awac_replay_redis_memory_bytes')} / {series('awac_replay_redis_memory_limit_bytes')}",
            warn_above=0.85,
        ),
    ),
)  # fmt: skip

_RATES = Row(
    title="Rates and limiter",
    panels=(
        Panel(
            title="Steps a second",
            description="Env steps of all actors, and gradient steps of the learner.",
            unit="short",
            minimum=0,
            queries=(
                Query(expr=per_second("awac_replay_env_steps_total"), legend="env steps"),
                Query(expr=per_second("awac_learner_grad_steps_total"), legend="gradient steps"),
            ),
        ),
        Panel(
            title="utd_ratio",
            description="Online gradient steps per env step, measured, and as the limiter holds it.",
            unit="short",
            minimum=0,
            queries=(
                Query(expr=series("awac_replay_utd_ratio"), legend="measured"),
                Query(expr=series("awac_replay_utd_ratio_setting"), legend="setting"),
            ),
        ),
        Panel(
            title="Env steps ahead of the learner",
            description="At 0 the learner waits, at the tolerance the actors wait.",
            unit="short",
            queries=(
                Query(expr=series("awac_replay_ahead_steps"), legend="ahead"),
                Query(expr=series("awac_replay_tolerance_steps"), legend="tolerance"),
            ),
        ),
        Panel(
            title="Who waits",
            description="Share of time that the learner and the mean actor wait, by what they wait for.",
            unit="percentunit",
            minimum=0,
            queries=(_LEARNER_WAITS, _ACTOR_WAITS),
        ),
        Panel(
            title="Samples for each new env step",
            description="Transitions drawn into batches, over transitions taken into the mirror.",
            unit="short",
            minimum=0,
            queries=(Query(expr=_SAMPLES_PER_INSERT, legend="samples per insert"),),
        ),
        Panel(
            title="Append latency",
            description="From encoding a trajectory to the service's answer, all actors.",
            unit="s",
            minimum=0,
            queries=latency(per_second("awac_actor_append_seconds_bucket")),
        ),
    ),
)

_STALENESS = Row(
    title="Staleness and replay",
    panels=(
        Panel(
            title="Age of acting weights",
            description="Time since the weights that each actor acts with were published.",
            unit="s",
            minimum=0,
            warn_above=300,
            queries=quantiles(_WEIGHT_AGE),
        ),
        Panel(
            title="Policy lag",
            description="Versions between the newest policy and the one that each actor acts with.",
            unit="short",
            minimum=0,
            queries=quantiles(_LAG),
        ),
        Panel(
            title="Replay age",
            description="Age of the oldest online transition that can still be drawn.",
            unit="s",
            minimum=0,
            queries=(Query(expr=f"time() - {series('awac_replay_oldest_timestamp_seconds')}", legend="oldest"),),
        ),
        Panel(
            title="Replay size",
            description="Transitions that batches are drawn from, by origin, and the stream's capacity.",
            unit="short",
            minimum=0,
            queries=(
                Query(expr=series("awac_learner_mirror_transitions"), legend="{{origin}}"),
                Query(expr=series("awac_replay_capacity_transitions"), legend="capacity"),
            ),
        ),
        Panel(
            title="Offline share of a batch",
            description="Expected share of seed data in a batch.",
            unit="percentunit",
            minimum=0,
            maximum=1,
            queries=(Query(expr=series("awac_learner_offline_ratio"), legend="offline"),),
        ),
        Panel(
            title="Redis memory",
            description="Used, and the limit at which Redis refuses writes.",
            unit="bytes",
            minimum=0,
            queries=(
                Query(expr=series("awac_replay_redis_memory_bytes"), legend="used"),
                Query(expr=series("awac_replay_redis_memory_limit_bytes"), legend="limit"),
            ),
        ),
    ),
)

_UPDATES = Row(
    title="Updates",
    panels=(
        Panel(
            title="Losses",
            description="Means since the last report. Worry when the critics' loss grows for long while Q sinks.",
            unit="short",
            queries=(update("critic_loss", "critics"), update("policy_loss", "policy")),
        ),
        Panel(
            title="Q values",
            description="Mean Q of the batch's actions, and its target; within [-100, 0] for rewards of -1 and 0.",
            unit="short",
            queries=(update("q_mean", "Q"), update("target_mean", "target")),
        ),
        Panel(
            title="Advantages",
            description="Mean and standard deviation over the batch, in units of return.",
            unit="short",
            queries=(update("advantage_mean", "mean"), update("advantage_std", "standard deviation")),
        ),
        Panel(
            title="Largest advantage weight",
            description="The mean is 1; near the batch size one transition decides.",
            unit="short",
            minimum=0,
            queries=(update("weight_max", "largest"),),
        ),
        Panel(
            title="Effective share of the batch",
            description="(sum w)^2 / (B sum w^2); and the share of Q values at the clamp, without gradient.",
            unit="percentunit",
            minimum=0,
            maximum=1,
            queries=(update("effective_sample_ratio", "effective"), update("clamped_ratio", "clamped Q")),
        ),
        Panel(
            title="Standard deviation of the policy",
            description="Mean over action dimensions: how much is explored.",
            unit="short",
            minimum=0,
            queries=(update("std_mean", "standard deviation"),),
        ),
        Panel(
            title="Log-likelihood",
            description="Mean log pi(a | s) of the batch's actions, in nats. Worry when it falls.",
            unit="short",
            queries=(update("log_prob_mean", "log pi"),),
        ),
        Panel(
            title="Evaluation backlog",
            description="Policy versions that wait for the evaluator.",
            unit="short",
            minimum=0,
            queries=(Query(expr=_BACKLOG, legend="waiting"),),
        ),
        Panel(
            title="Time of an evaluation",
            description="Mean over the evaluations so far.",
            unit="s",
            minimum=0,
            queries=(
                Query(
                    expr=f"{series('awac_evaluation_seconds_sum')} / {series('awac_evaluation_seconds_count')}",
                    legend="mean",
                ),
            ),
        ),
    ),
)

_PROCESSES = Row(
    title="Processes",
    panels=(
        Panel(
            title="Memory",
            description="Resident memory, by role.",
            unit="bytes",
            minimum=0,
            stacked=True,
            width=12,
            queries=(Query(expr=f"sum by (role) ({series('process_resident_memory_bytes')})", legend="{{role}}"),),
        ),
        Panel(
            title="CPU",
            description="Cores in use, by role.",
            unit="short",
            minimum=0,
            stacked=True,
            width=12,
            queries=(Query(expr=f"sum by (role) ({per_second('process_cpu_seconds_total')})", legend="{{role}}"),),
        ),
    ),
)

_ACTOR_RATE = f"sum by (process) ({per_second('awac_actor_env_steps_total')})"
_ACTOR_SUCCESS = f"{series('awac_actor_successes_total')} / {series('awac_actor_episodes_total')}"


def _top(title: str, description: str, unit: str, expr: str, *, lowest: bool = False) -> Panel:
    choose = "bottomk" if lowest else "topk"
    return Panel(
        title=title,
        description=description,
        unit=unit,
        kind="bargauge",
        width=8,
        height=9,
        queries=(Query(expr=f"{choose}(10, {expr})", legend="{{process}}"),),
    )


_FLEET_ROWS = (
    Row(
        title="Actors",
        panels=(
            _stat("Answering", "Actors that answer Prometheus.", "short", f"count({_ACTORS_UP} == 1)"),
            _stat(
                "Silent", "Actors that service discovery names and that do not answer.", "short",
                f"count({_ACTORS_UP} == 0) or vector(0)", warn_above=1,
            ),
            _stat(
                "Env steps a second", "All actors together.", "short",
                f"sum({per_second('awac_actor_env_steps_total')})",
            ),
            _stat("Episodes", "Training episodes ended.", "short", series("awac_replay_episodes_total")),
            _stat(
                "Training success", "Share of all training episodes, with exploration.", "percentunit",
                f"{series('awac_replay_successes_total')} / {series('awac_replay_episodes_total')}",
            ),
            _stat("Replaced", "Crashed actors that were replaced.", "short",
                  series("awac_replay_actor_restarts_total"), warn_above=1),
            _stat("Sent again", "Messages sent again: Redis had lost them.", "short",
                  f"sum({series('awac_actor_resent_messages_total')})"),
            _stat("Refused duplicates", "Steps that had been stored already.", "short",
                  series("awac_replay_duplicate_steps_total")),
        ),
    ),
    Row(
        title="Spread over actors",
        panels=(
            Panel(title="Steps a second of an actor", description="Slowest, median and fastest actor.", unit="short",
                  minimum=0, queries=quantiles(_ACTOR_RATE)),
            Panel(title="Age of acting weights", description="Time since the acting weights were published.", unit="s",
                  minimum=0, warn_above=300, queries=quantiles(_WEIGHT_AGE)),
            Panel(title="Policy lag", description="Versions behind the newest policy.", unit="short", minimum=0,
                  queries=quantiles(_LAG)),
            Panel(title="What actors wait for", description="Share of the mean actor's time, by reason.",
                  unit="percentunit", minimum=0, stacked=True, queries=(_ACTOR_WAITS,)),
            Panel(title="Training success of an actor", description="Since the start of its process.",
                  unit="percentunit", minimum=0, maximum=1, queries=quantiles(f"({_ACTOR_SUCCESS})")),
            Panel(title="Return of the newest episode", description="Lowest, median and highest actor.", unit="short",
                  queries=quantiles(series("awac_actor_episode_return"))),
            Panel(title="Append latency", description="From encoding to the answer, all actors.", unit="s", minimum=0,
                  queries=latency(per_second("awac_actor_append_seconds_bucket"))),
            Panel(title="Memory of an actor", description="Resident memory, shared pages included.", unit="bytes",
                  minimum=0, queries=quantiles(series("process_resident_memory_bytes", 'role="actor"'))),
            Panel(title="CPU of an actor", description="Cores in use.", unit="short", minimum=0,
                  queries=quantiles(per_second("process_cpu_seconds_total", 'role="actor"'))),
        ),
    ),
    Row(
        title="Actors to look at",
        panels=(
            _top("Slowest", "The ten actors with the fewest env steps a second.", "short", _ACTOR_RATE, lowest=True),
            _top("Oldest weights", "The ten actors with the oldest acting weights.", "s", f"({_WEIGHT_AGE})"),
            _top("Longest waits", "The ten actors that wait most, for whatever reason.", "percentunit",
                 f"sum by (process) ({_ACTORS_WAITING})"),
        ),
    ),
)  # fmt: skip


def overview() -> Dashboard:
    """One run, the learning curve first."""
    return Dashboard(
        uid=_OVERVIEW_UID,
        title="AWAC run",
        description="One run: what it learns, how fast, who waits, how stale, what the updates say.",
        rows=(_LEARNING, _STATE, _RATES, _STALENESS, _UPDATES, _PROCESSES),
        links=(("Actors", _FLEET_UID),),
    )


def fleet() -> Dashboard:
    """The actors of one run: their spread, and which to look at."""
    return Dashboard(
        uid=_FLEET_UID,
        title="AWAC actors",
        description="The actors of one run: how they spread, and which to look at.",
        rows=_FLEET_ROWS,
        links=(("Run", _OVERVIEW_UID),),
    )
