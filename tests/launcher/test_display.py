"""What a user sees: plain lines, the live screen at 80 x 24, and rates that survive a restart."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from launcher.display import Display, Rates, dashboard, duration, percent, plain_line, waits
from launcher.snapshot import RateMeter, Snapshot
from replay_service.reports import ActorLedger, Evaluation, LearnerReport
from replay_service.run_state import Phase, RunState

STATE = replace(
    RunState.from_hash({}),
    phase=Phase.ONLINE,
    env_steps=42_000,
    grad_steps=46_000,
    online_grad_steps=41_000,
    initial_env_steps=1_000,
    num_env_steps=1_000_000,
    num_offline_steps=5_000,
    policy_version=411,
    episodes=210,
    successes=126,
    seed_steps=5_000,
    retained_steps=42_000,
)


def evaluation(version: int, env_steps: int, final: float | None) -> Evaluation:
    return Evaluation(version, env_steps, 5_000 + env_steps, final, final, final, -80.0, 200.0, 50, 3.0, 0.0)


def actor(index: int, *, seen_ms: int = 1_000_000) -> ActorLedger:
    return ActorLedger(index, 1, 10, 2_000, 0, 0, 200, 10, 5, 0, 411, -55.0, seen_ms)


def snapshot(state: RunState = STATE, actors: int = 2, waiting: float = 0.0) -> Snapshot:
    report = LearnerReport(46_000, 42_000, 0.0, {"waiting_ratio": waiting})
    evaluations = [evaluation(v, 5_000 * v, 0.1 * v) for v in range(8)]
    return Snapshot(state, report, [actor(i) for i in range(actors)], evaluations, 1_000.0)


def render(shown: Snapshot, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(dashboard(shown, Rates(), "pen  seed 0  runs/pen", ""))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("actors", [1, 6, 32])
@pytest.mark.parametrize("phase", list(Phase))
def test_the_live_screen_fits_80_columns_and_24_rows_in_every_phase(phase: Phase, actors: int) -> None:
    lines = render(snapshot(replace(STATE, phase=phase), actors)).splitlines()
    assert len(lines) <= 24
    assert max(len(line) for line in lines) <= 80


def test_every_fact_begins_a_line_of_its_own() -> None:
    lines = render(snapshot()).splitlines()
    for name in ("phase", "rates", "utd ratio", "replay", "policy", "actors"):
        assert any(line.startswith(name) for line in lines), name
    assert any("42,000 of 1,000,000 env steps" in line for line in lines)


def test_the_live_screen_folds_many_actors_and_says_so() -> None:
    text = render(snapshot(actors=32))
    assert "and 26 more actors" in text
    assert "32 of 32 alive" in text


def test_an_actor_that_fell_silent_is_not_alive() -> None:
    shown = replace(snapshot(), actors=[actor(0), actor(1, seen_ms=900_000)])
    assert shown.actors_alive == 1


def test_a_plain_line_says_phase_progress_ratio_and_the_last_evaluation() -> None:
    line = plain_line(snapshot(), Rates(env_rate=100.0, grad_rate=101.0), "")
    assert "fine-tuning online, 42,000 of 1,000,000 env steps" in line
    assert "100 env steps/s | 101 gradient steps/s" in line
    assert "2:39:40 left" in line
    assert "utd 1.00" in line
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


def test_a_rate_is_taken_over_its_window_and_forgets_a_counter_that_went_back() -> None:
    now = [0.0]
    meter = RateMeter(window_s=10.0, clock=lambda: now[0])
    rates = []
    for second in range(30):
        now[0] = float(second)
        rates.append(meter.add(100 * second if second < 20 else 100 * (second - 15)))
    assert rates[19] == pytest.approx(100.0)
    assert rates[20] == 0.0  # restored from a checkpoint: no negative rate
    assert rates[29] == pytest.approx(100.0)


def test_small_words() -> None:
    assert (percent(None), percent(0.734)) == ("-", "73 %")
    assert (duration(59), duration(125), duration(3_725)) == ("0:59", "2:05", "1:02:05")
