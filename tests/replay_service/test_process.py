from __future__ import annotations

import http.client
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Counter

from replay_service.errors import ConfigError, LearningDiverged, StaleEpoch
from replay_service.process import PARENT_VARIABLE, RestartBudget, StopSignal, WaitNotice, run_role, serve_metrics
from tests.clocks import Clock
from tests.conftest import PATIENCE_S

if TYPE_CHECKING:
    from tests.conftest import WaitUntil


@pytest.fixture
def clock() -> Clock:
    return Clock()


def python(program: str, **environment: str) -> subprocess.Popen[str]:
    """A Python process that runs `program`, with pipes to talk to it."""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


class TestRestartBudget:
    def test_pauses_double_up_to_the_longest(self, clock: Clock) -> None:
        budget = RestartBudget(limit=6, window_s=100, first_pause_s=1, longest_pause_s=10, clock=clock)
        assert [budget.next_pause_s() for _ in range(6)] == [1, 2, 4, 8, 10, 10]

    def test_it_is_spent_after_its_limit(self, clock: Clock) -> None:
        budget = RestartBudget(limit=2, window_s=100, clock=clock)
        assert [budget.next_pause_s() for _ in range(4)] == [0.5, 1.0, None, None]

    def test_a_limit_of_0_allows_nothing(self, clock: Clock) -> None:
        assert RestartBudget(limit=0, window_s=100, clock=clock).next_pause_s() is None

    def test_restarts_older_than_the_window_are_forgotten(self, clock: Clock) -> None:
        budget = RestartBudget(limit=2, window_s=100, clock=clock)
        budget.next_pause_s()
        clock.now += 60
        budget.next_pause_s()
        clock.now += 40
        assert budget.next_pause_s() is None
        clock.now += 1
        assert budget.next_pause_s() == 1.0
        clock.now += 101
        assert budget.next_pause_s() == 0.5

    def test_a_refused_restart_is_not_counted(self, clock: Clock) -> None:
        budget = RestartBudget(limit=1, window_s=100, clock=clock)
        budget.next_pause_s()
        for _ in range(5):
            clock.now += 20
            assert budget.next_pause_s() is None
        clock.now += 1
        assert budget.next_pause_s() == 0.5


class TestWaitNotice:
    @pytest.fixture(autouse=True)
    def _log_level(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)

    def test_a_short_wait_is_not_worth_a_line(self, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        notice = WaitNotice("actor 3", clock=clock)
        notice.waiting("steps")
        clock.now += 9.5
        notice.waiting("steps")
        assert notice.done() == 9.5
        assert caplog.records == []

    def test_a_long_wait_is_told_every_ten_seconds(self, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        notice = WaitNotice("actor 3", clock=clock)
        for _ in range(26):
            notice.waiting("steps")
            clock.now += 1
        assert [record.getMessage() for record in caplog.records] == [
            "actor 3 waits for steps since 10 s",
            "actor 3 waits for steps since 20 s",
        ]

    def test_the_next_wait_begins_anew(self, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        notice = WaitNotice("actor 3", clock=clock)
        notice.waiting("steps")
        clock.now += 9
        notice.done()
        clock.now += 9
        notice.waiting("steps")
        clock.now += 9
        notice.waiting("steps")
        assert notice.done() == 9
        assert caplog.records == []

    def test_no_wait_lasts_no_time(self, clock: Clock) -> None:
        assert WaitNotice("actor 3", clock=clock).done() == 0.0


class TestStopSignal:
    PROGRAM = """
import sys
from replay_service.process import StopSignal
stop = StopSignal()
stop.install()
print("ready", flush=True)
stop.wait(60)
print("asked", stop.is_set(), flush=True)
sys.stdin.readline()
"""

    AT_EVERY_LINE = f"""
import faulthandler, signal, sys
from replay_service.process import StopSignal

faulthandler.dump_traceback_later({PATIENCE_S / 2}, exit=True)
line = 0
while True:
    stop, line, seen = StopSignal(), line + 1, 0
    stop.install()

    def at_line(frame, event, _argument):
        global seen
        seen += event == "line"
        if event == "line" and seen == line:
            signal.raise_signal(signal.SIGTERM)
        return at_line

    sys.settrace(at_line)
    stop.wait(0.05)
    sys.settrace(None)
    if seen < line:
        break
    assert stop.is_set(), line
print("lines", line)
"""

    def test_a_signal_at_any_line_of_a_wait_is_taken(self) -> None:
        """The handler runs in the thread that waits, between any two of its lines, whatever that one holds."""
        with python(self.AT_EVERY_LINE) as process:
            out, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        assert int(out.removeprefix("lines ")) > 3

    def test_several_may_wait(self) -> None:
        stop = StopSignal()
        found: list[bool] = []
        waiting = [threading.Thread(target=lambda: found.append(stop.wait(PATIENCE_S)), daemon=True) for _ in range(3)]
        for thread in waiting:
            thread.start()
        stop.set()
        for thread in waiting:
            thread.join(PATIENCE_S)
        assert found == [True] * 3

    def test_it_is_set_once_and_stays(self) -> None:
        stop = StopSignal()
        assert (stop.is_set(), stop.wait(0), stop.wait(-1)) == (False, False, False)
        stop.set()
        assert (stop.is_set(), stop.wait(60)) == (True, True)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_first_signal_asks_and_the_second_ends_the_process(self, number: signal.Signals) -> None:
        with python(self.PROGRAM) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.stdout.readline() == "asked True\n"
            assert process.poll() is None
            process.send_signal(number)
            assert process.wait(timeout=PATIENCE_S) == 128 + number

    def test_a_child_that_is_asked_twice_ends_in_order_all_the_same(self) -> None:
        with python(self.PROGRAM.replace("StopSignal()", "StopSignal(twice_at_once=False)")) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            process.terminate()
            assert process.stdout.readline() == "asked True\n"
            process.terminate()
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait(timeout=PATIENCE_S) == 0

    def test_a_process_that_was_asked_can_end_in_order(self) -> None:
        with python(self.PROGRAM) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            process.terminate()
            process.stdout.readline()
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait(timeout=PATIENCE_S) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own mechanism is Linux's; reads /proc")
class TestDeathWithParent:
    CHILD = (
        "import time; from replay_service.process import {call}; {call}(); print('ready', flush=True); time.sleep(60)"
    )
    PARENT = """
import os, subprocess, sys, time
environment = {{**os.environ, {variable!r}: str(os.getpid())}}
child = subprocess.Popen([sys.executable, "-c", {program!r}], stdout=subprocess.PIPE, env=environment)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""

    @pytest.mark.parametrize("call", ["die_with_parent", "die_with_launcher"])
    def test_a_child_does_not_outlive_a_parent_that_was_killed(
        self, process_is_running: Callable[[int], bool], wait_until: WaitUntil, call: str
    ) -> None:
        program = self.PARENT.format(variable=PARENT_VARIABLE, program=self.CHILD.format(call=call))
        with python(program) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            assert process_is_running(child)
            parent.kill()
            wait_until(lambda: not process_is_running(child), "the child to die")

    def test_a_parent_that_died_before_the_call_is_noticed(self) -> None:
        somebody_else = "1"
        with python(self.CHILD.format(call="die_with_launcher"), **{PARENT_VARIABLE: somebody_else}) as orphan:
            assert orphan.wait(timeout=PATIENCE_S) == 1

    def test_a_role_that_was_started_by_hand_lives_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(PARENT_VARIABLE, raising=False)
        with python(self.CHILD.format(call="die_with_launcher")) as role:
            assert role.stdout is not None
            assert role.stdout.readline() == "ready\n"
            role.kill()


class TestRunRole:
    @pytest.mark.parametrize(
        "error", [ConfigError("actors: expected 1"), StaleEpoch("replaced"), LearningDiverged("NaN")], ids=repr
    )
    def test_what_a_restart_cannot_mend_is_one_line_and_exit_code_2(
        self, error: Exception, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def main() -> int:
            raise error

        assert run_role(main) == 2
        assert capsys.readouterr().err == f"error: {error}\n"

    def test_a_crash_is_logged_and_raised(self, caplog: pytest.LogCaptureFixture) -> None:
        def main() -> int:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run_role(main)
        assert "crashed" in caplog.text

    def test_otherwise_the_code_is_that_of_the_role(self) -> None:
        assert run_role(lambda: 3) == 3


def test_the_log_goes_to_a_file_with_the_role_in_every_line(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "learner.log"
    program = f"""
import logging, pathlib
from replay_service.process import configure_logging
configure_logging("learner", pathlib.Path({str(path)!r}))
logging.getLogger("x").info("resumed at version %d", 412)
logging.getLogger("x").debug("not a change of state")
"""
    with python(program) as process:
        _, errors = process.communicate()
    assert errors == ""
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert line.endswith("learner INFO resumed at version 412")


def test_metrics_are_served_where_it_says() -> None:
    registry = CollectorRegistry()
    Counter("awac_test_steps", "Steps of a test.", registry=registry).inc(3)
    host, _, port = serve_metrics(registry, "127.0.0.1").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    assert host == "127.0.0.1"
    assert "awac_test_steps_total 3.0" in lines
    assert not any("_created" in line for line in lines)
