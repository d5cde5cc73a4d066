"""Plain lines where there is no terminal, and who waits for whom."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from launcher.display import Display, plain_line
from launcher.rates import Rates
from launcher.wording import waits
from replay_service.run_state import Phase
from tests.launcher.made_snapshots import NOW, STATE, actor, evaluation, snapshot


def test_an_actor_that_fell_silent_is_not_alive() -> None:
    shown = replace(snapshot(), actors=[actor(0), actor(1, seen_s=NOW - 100)])
    assert shown.actors_alive == 1


def test_a_plain_line_says_phase_progress_ratio_and_the_last_evaluation() -> None:
    line = plain_line(snapshot(), Rates(env_rate=100.0, grad_rate=101.0), "")
    assert "fine-tuning online, 42,000 of 1,000,000 env steps" in line
    assert "100 env steps/s | 101 gradient steps/s" in line
    assert "2:39:40 left" in line
    assert "utd 0.99" in line
    assert "version 7: success any 70 %, final 70 %" in line


def test_success_is_left_out_where_the_environment_has_none() -> None:
    line = plain_line(replace(snapshot(), evaluations=[evaluation(1, 0, None)]), Rates(), "")
    assert "success" not in line
    assert "return -80.0" in line


@pytest.mark.parametrize(
    ("waiting", "expected"), [(0.9, "learner waits for env steps 90 %"), (0.0, "learner is busy"), (0.2, "balanced")]
)
def test_who_waits_for_whom(waiting: float, expected: str) -> None:
    assert expected in waits(snapshot(waiting=waiting))


def test_without_a_terminal_a_line_comes_every_five_seconds_and_at_each_new_phase() -> None:
    now = [0.0]
    out = io.StringIO()
    with Display("t", Console(file=out, width=80), clock=lambda: now[0]) as display:
        for second in range(12):
            now[0] = float(second)
            display.show(snapshot())
        assert len(out.getvalue().splitlines()) == 3
        display.show(snapshot(replace(STATE, phase=Phase.FINISHED)))
        assert len(out.getvalue().splitlines()) == 4
    assert "\x1b" not in out.getvalue()


def test_in_a_terminal_the_screen_is_live() -> None:
    out = io.StringIO()
    with Display("pen  seed 0", Console(file=out, width=80, height=24, force_terminal=True)) as display:
        display.show(snapshot())
        display.warn("Redis does not answer")
        display.show(snapshot())
    assert "fine-tuning online" in out.getvalue()
    assert "Redis does not answer" in out.getvalue()
    assert "\x1b" in out.getvalue()
