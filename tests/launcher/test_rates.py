"""Rates: now, over a window; and over the last minutes, from the learner's reports."""

from __future__ import annotations

import pytest

from launcher.rates import Rates, rate_history
from launcher.snapshot import RateMeter
from launcher.wording import age, duration, percent, rate, sparkline
from replay_service.reports import LearnerReport
from tests.launcher.made_snapshots import reports, snapshot


def report(seconds: float, env_steps: int) -> LearnerReport:
    return LearnerReport(0, env_steps, seconds, {})


def test_a_rate_is_taken_over_its_window_and_forgets_a_counter_that_went_back() -> None:
    now = [0.0]
    meter = RateMeter(window_s=10.0, clock=lambda: now[0])
    found = []
    for second in range(30):
        now[0] = float(second)
        found.append(meter.add(100 * second if second < 20 else 100 * (second - 15)))
    assert found[19] == pytest.approx(100.0)
    assert found[20] == 0.0  # restored from a checkpoint: no negative rate
    assert found[29] == pytest.approx(100.0)


def test_each_actor_has_a_rate_of_its_own() -> None:
    now = [0.0]
    rates = Rates(env_steps=RateMeter(clock=lambda: now[0]), grad_steps=RateMeter(clock=lambda: now[0]))
    rates.update(snapshot(actors=2))
    now[0] = 1.0
    rates.update(snapshot(actors=3))
    assert rates.actor_rates == {0: 0.0, 1: 0.0, 2: 0.0}


def test_the_history_of_a_steady_run_is_level_and_empty_before_the_first_report() -> None:
    found = rate_history(reports(seconds=20), "env_steps", bars=6)
    assert found[:2] == [None, None]
    assert found[2:] == pytest.approx([100.0] * 4)


def test_the_history_shows_a_pause_and_a_counter_that_went_back_as_nothing() -> None:
    found = rate_history([report(0, 0), report(5, 500), report(10, 500), report(15, 100)], "env_steps", bars=3)
    assert found == [100.0, 0.0, 0.0]


def test_one_report_is_no_history() -> None:
    assert rate_history(reports(seconds=0), "env_steps", bars=2) == [None, None]


def test_words() -> None:
    assert (percent(None), percent(0.734)) == ("-", "73 %")
    assert (duration(59), duration(125), duration(3_725)) == ("0:59", "2:05", "1:02:05")
    assert (age(None), age(0.44), age(12.3), age(125)) == ("-", "0.4 s", "12 s", "2:05")
    assert (rate(0), rate(0.44), rate(12.3), rate(1234.5)) == ("0", "0.4", "12", "1,234")


def test_a_history_line_goes_from_nothing_to_the_top() -> None:
    assert sparkline([None, 0, 1, 2]) == " ▁▅█"
    assert sparkline([0, 1, 2], ascii_only=True) == "_+@"
    assert sparkline([0.5], top=1.0) == "▅"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
