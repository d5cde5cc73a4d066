"""Points: names in groups, and all x axes with each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from replay_service.event_files import EventFiles
from replay_service.points import Point, evaluation_point, learner_point, run_point
from replay_service.reports import ActorLedger, Evaluation, LearnerReport
from tests.replay_service.test_records import EVALUATION, STATE, ledger, take_events

REPORT = LearnerReport(
    150,
    120,
    1_700_000_010.0,
    {"critic_loss": 0.5, "waiting_ratio": 0.25, "offline_ratio": 0.1, "seed_transitions": 9.0},
)


def test_an_evaluation_stands_at_the_steps_behind_its_policy_without_what_it_has_not() -> None:
    point = evaluation_point(EVALUATION)
    assert (point.env_steps, point.grad_steps, point.unix_seconds) == (0, 20, 1_700_000_000.0)
    assert point.values == {
        "eval/success_any": 0.25,
        "eval/success_fraction": 0.125,
        "eval/episode_return": -50.5,
        "eval/episode_length": 20.0,
    }
    assert isinstance(EVALUATION, Evaluation)


def test_a_report_is_split_into_its_groups() -> None:
    point = learner_point(REPORT, None)
    assert (point.env_steps, point.grad_steps) == (120, 150)
    assert point.values == {
        "learner/critic_loss": 0.5,
        "perf/waiting_ratio": 0.25,
        "replay/offline_ratio": 0.1,
        "replay/seed_transitions": 9.0,
    }


def test_env_steps_a_second_follow_from_the_report_before() -> None:
    before = replace(REPORT, env_steps=100, unix_seconds=REPORT.unix_seconds - 4)
    assert learner_point(REPORT, before).values["perf/env_steps_per_second"] == 5.0
    ahead = replace(before, env_steps=200)  # steps were quarantined meanwhile
    assert "perf/env_steps_per_second" not in learner_point(REPORT, ahead).values


def test_the_run_shows_its_actors_and_how_far_they_are_behind() -> None:
    actors = [
        replace(ledger(0, stored=60), policy_version=9, last_return=-10.0),
        replace(ledger(1, stored=60), policy_version=6, last_return=-20.0),
    ]
    point = run_point(STATE, actors, unix_seconds=5.0)
    assert (point.env_steps, point.grad_steps, point.unix_seconds) == (120, 150, 5.0)
    assert point.values == {
        "weights/policy_version": 9.0,
        "weights/policy_lag_max": 3.0,
        "actor/success_rate": 0.0,
        "actor/episodes": 6.0,
        "actor/episode_return": -15.0,
    }


def test_actors_that_were_sent_away_are_not_behind() -> None:
    now = 1_000.0

    def seen(actor_id: int, version: int, seconds_ago: float) -> ActorLedger:
        last_seen_ms = int(1000 * (now - seconds_ago))
        return replace(
            ledger(actor_id, stored=60), policy_version=version, last_return=-float(version), last_seen_ms=last_seen_ms
        )

    # Two places: 0 is silent and belongs to the run; 2 has not gone yet; 3 has.
    actors = [seen(0, 7, 60.0), seen(1, 9, 1.0), seen(2, 8, 1.0), seen(3, 2, 60.0)]
    values = run_point(replace(STATE, actors=2), actors, unix_seconds=now).values
    assert (values["weights/policy_lag_max"], values["actor/episode_return"]) == (2.0, -8.0)


def test_pretraining_has_no_place_on_the_axis_of_env_steps_but_its_evaluation_has(tmp_path: Path) -> None:
    files = EventFiles(tmp_path / "tensorboard")
    files.write(Point(0, 50, 1.0, {"learner/critic_loss": 1.0}))
    files.write(Point(0, 60, 2.0, {"eval/success_any": 0.5}))
    files.write(Point(10, 70, 3.0, {"learner/critic_loss": 0.5}))
    files.close()
    assert take_events(tmp_path, "by_grad_steps") == [
        ("learner/critic_loss", 50), ("eval/success_any", 60), ("learner/critic_loss", 70),
    ]  # fmt: skip
    assert take_events(tmp_path, "by_env_steps") == [("eval/success_any", 0), ("learner/critic_loss", 10)]
