"""The order in which roles end, with real processes: the replay service last, and in order whatever goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.program import RoleProgram
from launcher.supervisor import Supervisor
from replay_service.access import Role
from replay_service.errors import DamagedState
from tests.launcher.test_supervisor import LocalPlacement

ROLES = {"replay": Role.REPLAY, "learner": Role.LEARNER, "actors-0": Role.ACTOR, "evaluator": Role.EVALUATOR}
IN_ORDER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("up", flush=True)
signal.pause()
"""
"""Ends with code 0 when it is asked to; killed, it would end with -9."""


class Placement(LocalPlacement):
    """May fail to stop one of them."""

    fails_at = ""

    def stop(self, name: str, grace_s: float) -> int | None:
        code = super().stop(name, grace_s)
        if name == self.fails_at:
            raise OSError("the node does not answer")
        return code


@pytest.fixture
def placement() -> Iterator[Placement]:
    made = Placement()
    yield made
    for process in made.processes.values():
        process.kill()
        process.wait()


@pytest.fixture
def supervisor(placement: Placement, tmp_path: Path) -> Supervisor:
    """Watches all roles of a run, which are up."""
    made = Supervisor(
        placement,
        environment=lambda _program: {},
        max_restarts=2,
        restart_window_s=600.0,
        on_restart=lambda _name: None,
    )
    for name, role in ROLES.items():
        log = tmp_path / f"{name}.log"
        made.start(RoleProgram(name, ("-c", IN_ORDER), log, num_cpus=1.0, role=role))
        while not log.read_text():
            assert placement.poll(name) is None
    return made


def test_all_end_in_order_and_redis_is_asked_before_its_keeper_ends(
    supervisor: Supervisor, placement: Placement
) -> None:
    codes = supervisor.stop_all(60.0, before_replay=lambda: placement.tape.append("look"))
    assert placement.tape[-5:] == ["stop actors-0", "stop evaluator", "stop learner", "look", "stop replay"]
    assert codes == dict.fromkeys(ROLES, 0)


def test_a_last_look_that_fails_keeps_the_replay_service_from_nothing(
    supervisor: Supervisor, placement: Placement
) -> None:
    def look() -> None:
        raise DamagedState("env_steps holds b'many'")

    with pytest.raises(DamagedState):
        supervisor.stop_all(60.0, before_replay=look)
    assert placement.tape[-1] == "stop replay"
    assert placement.processes["replay"].returncode == 0


def test_a_role_that_cannot_be_stopped_does_not_either(supervisor: Supervisor, placement: Placement) -> None:
    placement.fails_at = "actors-0"
    with pytest.raises(OSError, match="does not answer"):
        supervisor.stop_all(60.0, before_replay=lambda: None)
    assert placement.tape[-2:] == ["stop actors-0", "stop replay"]
    assert placement.processes["replay"].returncode == 0


def test_a_second_ctrl_c_waits_for_nobody(supervisor: Supervisor, placement: Placement) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervisor.stop_all(60.0, before_replay=interrupt)
    assert placement.processes["replay"].poll() is None
