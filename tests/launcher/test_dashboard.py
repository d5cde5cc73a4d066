"""The live screen at 80 x 24 and at 120 x 40, from made snapshots with 1, 4 and 64 actors."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from launcher.dashboard import Dashboard, worth_a_look
from launcher.snapshot import RedisMemory, Snapshot
from replay_service.run_state import Phase
from tests.launcher.made_snapshots import NOW, STATE, actor, evaluation, rates, snapshot


def render(shown: Snapshot, size: tuple[int, int] = (80, 24), notice: str = "") -> list[str]:
    console = Console(file=io.StringIO(), width=size[0], height=size[1], color_system=None)
    console.print(Dashboard(shown, rates(len(shown.actors)), "pen  seed 0  runs/pen", notice))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def fact(lines: list[str], name: str) -> str:
    (found,) = (line for line in lines if line.startswith(f"{name} "))
    return found.removeprefix(name).strip()


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
@pytest.mark.parametrize("actors", [1, 4, 64])
@pytest.mark.parametrize("phase", list(Phase))
def test_the_screen_fits_in_every_phase(phase: Phase, actors: int, size: tuple[int, int]) -> None:
    troubled = replace(
        STATE, phase=phase, quarantined_messages=3, quarantined_steps=600, actor_restarts=2, learner_restarts=1
    )
    for state in (STATE, troubled):
        lines = render(snapshot(replace(state, phase=phase), actors=actors), size, notice="Redis does not answer")
        assert len(lines) < size[1]
        assert max(map(len, lines)) <= size[0]
        assert fact(lines, "phase")


def test_every_fact_has_its_line() -> None:
    lines = render(snapshot())
    assert "42,000 of 1,000,000 env steps, 2:39:40 left" in fact(lines, "phase")
    assert "100 env steps/s" in fact(lines, "rates")
    assert "101 gradient steps/s" in fact(lines, "rates")
    assert fact(lines, "utd ratio") == "0.99, band 0.98 to 1.00; actors 600 of 1,000 steps ahead"
    assert fact(lines, "waiting") == "the learner is busy; actors wait for it when they are ahead"
    assert fact(lines, "replay") == "5,000 seed + 42,000 online transitions, 11 % of a batch offline"
    assert fact(lines, "redis") == "312 MiB of 4,096 MiB (8 %)"
    assert fact(lines, "policy") == "version 411, 0.4 s old; actors up to 1 behind, 1.9 s old"
    assert fact(lines, "actors") == "2 of 2 alive, 210 episodes, 60 % successful"
    assert fact(lines, "evaluated") == "success ▁▂▂▃▄▅▅▆ +10 points"


def test_a_steady_run_has_a_level_history_line() -> None:
    wide = fact(render(snapshot(), (120, 40)), "rates")
    assert "100 env steps/s " + 28 * "█" in wide
    assert wide.endswith("(140 s)")


@pytest.mark.parametrize(("size", "rows"), [((80, 24), 4), ((120, 40), 4)], ids=["80x24", "120x40"])
def test_few_actors_have_a_row_each(size: tuple[int, int], rows: int) -> None:
    lines = render(snapshot(actors=rows), size)
    header = next(index for index, line in enumerate(lines) if line.split()[:2] == ["actor", "steps/s"])
    shown = [line.split() for line in lines[header + 1 :]]
    assert [row[0] for row in shown] == ["0", "1", "2", "3"]
    assert shown[1] == ["1", "4.1", "2,001", "10", "10", "%", "-55.0", "1.9", "s", "0"]


def test_many_actors_fold_to_their_extremes_on_a_small_screen() -> None:
    lines = render(snapshot(actors=64))
    assert any(line.split() == ["steps/s", "4.0", "0", "7.2", "10", "63"] for line in lines)
    assert any(line.split()[:3] == ["age", "of", "weights"] for line in lines)
    assert not any(line.split()[:2] == ["actor", "steps/s"] for line in lines)


def test_a_larger_screen_also_names_the_actors_worth_a_look() -> None:
    shown = snapshot(actors=64)
    shown.actors[40] = actor(40, seen_s=NOW - 100)
    shown.actors[50] = actor(50, restarts=4)
    lines = render(shown, (120, 40))
    assert any("of them to look at first" in line for line in lines)
    assert any(line.split()[:2] == ["silent", "40"] for line in lines)
    assert any(line.split()[:1] == ["50"] and line.split()[-1] == "4" for line in lines)


def test_silent_and_restarted_and_slow_actors_come_first() -> None:
    shown = snapshot(actors=6)
    shown.actors[5] = actor(5, seen_s=NOW - 100)
    shown.actors[4] = actor(4, restarts=1)
    assert [a.actor_id for a in worth_a_look(shown, rates(6), 3)] == [0, 4, 5]


WARNINGS: list[tuple[str, Callable[[Snapshot], Snapshot]]] = [
    ("Redis uses 3,900 of 4,096 MiB", lambda s: replace(s, memory=RedisMemory(3_900 * 2**20, 4_096 * 2**20))),
    ("in quarantine: 3 messages (600 steps)", lambda s: replace(
        s, state=replace(s.state, quarantined_messages=3, quarantined_steps=600))),
    ("silent: 1 of 2 actors (1)", lambda s: replace(s, actors=[actor(0), actor(1, seen_s=NOW - 60)])),
    ("actors crashed and were replaced: 2 restarts", lambda s: replace(s, state=replace(s.state, actor_restarts=2))),
    ("the learner crashed and was replaced: 1 restart", lambda s: replace(
        s, state=replace(s.state, learner_restarts=1))),
    ("the learner has not reported for 2:00", lambda s: replace(
        s, report=replace(s.reports[-1], unix_seconds=NOW - 120))),
    ("the learner is starved: it waits 95 %", lambda s: replace(
        s, report=replace(s.reports[-1], metrics={"waiting_ratio": 0.95}))),
    ("1 critic without any gradient so far", lambda s: replace(
        s, report=replace(s.reports[-1], metrics={"unlearned_critics": 1.0}))),
    ("no policy was published for 6:40", lambda s: replace(s, publications={411: NOW - 400})),
    ("9 evaluations wait", lambda s: replace(s, state=replace(s.state, evaluations_requested=9))),
    ("70 evaluations wait, the oldest beyond 64 are dropped;", lambda s: replace(
        s, state=replace(s.state, evaluations_requested=70))),
    ("2 evaluations asked for and never made", lambda s: replace(s, state=replace(s.state, evaluations_missed=2))),
    ("success fell from 70 % after pretraining to 40 %", lambda s: replace(
        s, evaluations=[evaluation(0, 0, 0.9), evaluation(1, 0, 0.7), evaluation(2, 5_000, 0.4)])),
]  # fmt: skip


@pytest.mark.parametrize(("text", "spoil"), WARNINGS, ids=[text for text, _spoil in WARNINGS])
def test_what_is_wrong_is_said(text: str, spoil: Callable[[Snapshot], Snapshot]) -> None:
    assert not any(line.startswith("warning") for line in render(snapshot()))
    assert text in fact(render(spoil(snapshot())), "warning")


def test_before_the_first_steps_nothing_is_claimed() -> None:
    state = replace(STATE, phase=Phase.PRETRAINING, env_steps=0, online_grad_steps=0, policy_version=0, grad_steps=10)
    bare = Snapshot(state, None, [], [], NOW)
    lines = render(bare)
    assert fact(lines, "utd ratio") == "- (to be held at 1)"
    assert fact(lines, "policy") == "none published yet"
    assert fact(lines, "actors").startswith("0 of 0 alive")


def test_a_terminal_without_colour_or_unicode_gets_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(file=file, width=80, height=24, force_terminal=True)
    console.print(Dashboard(snapshot(actors=4), rates(4), "pen  seed 0  runs/pen", "trouble"))
    file.flush()
    text = raw.getvalue().decode("ascii")
    assert "success _" in text
    assert "\x1b[33m" not in text  # the yellow of warnings
    assert "trouble" in text
