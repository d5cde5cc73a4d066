"""What the user is told while programs wait for room."""

from __future__ import annotations

from pathlib import Path

from launcher.program import RoleProgram
from launcher.room_notice import RoomNotice

LEARNER = RoleProgram("learner", (), Path("log"), num_cpus=1.0, num_gpus=1.0)


def test_a_line_every_ten_seconds_with_what_is_asked_and_what_is_free_then_one_that_it_is_over() -> None:
    now, waiting, said = [0.0], [LEARNER], list[str]()
    notice = RoomNotice(lambda: waiting, lambda: "3 CPUs are free", said.append, clock=lambda: now[0])
    for second in range(26):
        now[0] = float(second)
        notice.look()
    assert len(said) == 2
    assert "since 20 s: learner (1 CPU, 1 GPU); 3 CPUs are free" in said[1]
    waiting.clear()
    notice.look()
    notice.look()
    assert said[2:] == ["every program has found room"]


def test_a_short_wait_is_not_worth_a_line() -> None:
    now, waiting, said = [0.0], [LEARNER], list[str]()
    notice = RoomNotice(lambda: waiting, lambda: "", said.append, clock=lambda: now[0])
    notice.look()
    now[0] = 9.0
    notice.look()
    waiting.clear()
    notice.look()
    waiting.append(LEARNER)
    now[0] = 15.0
    notice.look()  # another wait, which begins here
    assert said == []
