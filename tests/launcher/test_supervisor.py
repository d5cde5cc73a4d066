"""Supervision with real processes: restarts, budgets, refusals, order of the end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.program import RoleProgram
from launcher.supervisor import RoleRefused, RunFailed, Supervisor, last_error


class LocalPlacement:
    """Runs programs as children of the test, where the launcher's runs them on Ray; same protocol."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.tape: list[str] = []

    def start(self, program: RoleProgram, environment: dict[str, str]) -> int:
        self.tape.append(f"start {program.name}")
        if program.name in self.processes:
            self.processes[program.name].wait()  # it has ended: collect it before it is replaced
        with program.log_path.open("ab") as log:
            process = subprocess.Popen([sys.executable, *program.arguments], stdout=log, stderr=log)
        self.processes[program.name] = process
        return process.pid

    def placed(self, name: str) -> int | None:
        return self.processes[name].pid

    def poll(self, name: str) -> int | None:
        return self.processes[name].poll()

    def stop(self, name: str, grace_s: float) -> int | None:
        self.tape.append(f"stop {name}")
        process = self.processes[name]
        process.terminate()
        return process.wait(grace_s)


def program(tmp_path: Path, name: str, code: str) -> RoleProgram:
    return RoleProgram(name, ("-c", code), tmp_path / f"{name}.log", num_cpus=1.0)


PATIENCE_S = 120.0
"""For a program of a few lines to start or to end: a bound for what hangs, never a measurement."""

FOREVER = "import time\nwhile True: time.sleep(0.1)"


@pytest.fixture
def placement() -> Iterator[LocalPlacement]:
    made = LocalPlacement()
    yield made
    for process in made.processes.values():
        process.kill()
        process.wait()


def supervisor(placement: LocalPlacement, on_restart: Callable[[str], None] = lambda _name: None) -> Supervisor:
    return Supervisor(
        placement,
        environment=lambda _program: {},
        max_restarts=2,
        restart_window_s=600.0,
        on_restart=on_restart,
    )


def tend_until(watch: Supervisor, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        watch.tend()
        time.sleep(0.02)


def test_a_killed_role_is_started_again_and_counted(tmp_path: Path, placement: LocalPlacement) -> None:
    restarted: list[str] = []
    watch = supervisor(placement, restarted.append)
    watch.start(program(tmp_path, "learner", FOREVER))
    first = placement.processes["learner"]
    first.kill()
    tend_until(watch, lambda: restarted == ["learner"])
    assert placement.processes["learner"].pid != first.pid
    assert placement.poll("learner") is None
    watch.stop(["learner"], PATIENCE_S)


def test_an_end_that_nobody_asked_for_is_a_crash_even_with_code_0(tmp_path: Path, placement: LocalPlacement) -> None:
    restarted: list[str] = []
    watch = supervisor(placement, restarted.append)
    watch.start(program(tmp_path, "evaluator", "pass"))
    tend_until(watch, lambda: restarted == ["evaluator"])


def test_a_role_that_keeps_crashing_ends_the_run_with_its_log_named(tmp_path: Path, placement: LocalPlacement) -> None:
    watch = supervisor(placement)
    watch.start(program(tmp_path, "learner", "raise SystemExit(7)"))
    with pytest.raises(RunFailed, match=r"learner ended with code 7 after 2 restarts.*learner\.log"):
        tend_until(watch, lambda: False)
    assert placement.tape == ["start learner"] * 3


def test_a_role_that_refuses_is_not_started_again_and_its_own_words_are_shown(
    tmp_path: Path, placement: LocalPlacement
) -> None:
    code = "print('error: the dataset is of another environment'); raise SystemExit(2)"
    watch = supervisor(placement)
    watch.start(program(tmp_path, "replay", code))
    with pytest.raises(RoleRefused, match="replay: the dataset is of another environment"):
        tend_until(watch, lambda: False)
    assert placement.tape == ["start replay"]


def test_roles_are_stopped_in_the_order_asked_for(tmp_path: Path, placement: LocalPlacement) -> None:
    watch = supervisor(placement)
    for name in ("replay", "learner", "actors-0"):
        watch.start(program(tmp_path, name, FOREVER))
    codes = watch.stop(["actors-0", "learner", "replay", "never-started"], PATIENCE_S)
    assert placement.tape[3:] == ["stop actors-0", "stop learner", "stop replay"]
    assert set(codes) == {"actors-0", "learner", "replay"}
    assert watch.names == []


def test_last_error_names_the_log_when_it_holds_none(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert str(log) in last_error(log)
    log.write_text("nothing of note\n")
    assert str(log) in last_error(log)
    log.write_text("error: first\nerror: second\n")
    assert last_error(log) == "second"


class CrowdedPlacement(LocalPlacement):
    """Has no room for a program until `room` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.room = False
        self._asked: dict[str, RoleProgram] = {}

    def start(self, program: RoleProgram, environment: dict[str, str]) -> int | None:  # type: ignore[override]
        self._asked[program.name] = program
        return self.placed(program.name)

    def placed(self, name: str) -> int | None:
        return super().start(self._asked[name], {}) if self.room else None


def test_a_program_without_room_waits_and_neither_blocks_nor_spends_its_budget(tmp_path: Path) -> None:
    crowded, restarted = CrowdedPlacement(), list[str]()
    watch = Supervisor(
        crowded, environment=lambda _p: {}, max_restarts=1, restart_window_s=60.0, on_restart=restarted.append
    )
    watch.start(program(tmp_path, "actors-0", FOREVER))
    for _ in range(5):
        watch.tend()
    assert [p.name for p in watch.waiting] == ["actors-0"]
    crowded.room = True
    watch.tend()
    assert watch.waiting == []
    assert restarted == []

    crowded.room = False
    crowded.processes["actors-0"].kill()  # and its node is full when it is to be started again
    tend_until(watch, lambda: bool(watch.waiting))
    assert [p.name for p in watch.waiting] == ["actors-0"]
    crowded.room = True
    watch.tend()
    assert restarted == ["actors-0"]
    assert watch.stop(["actors-0"], PATIENCE_S) == {"actors-0": -15}
