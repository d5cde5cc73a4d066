"""Each role of a real run holds its own credential and no other; a user's own Redis needs what the document says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replay_service.access import OWN_REDIS_RULES, Role, role_endpoint
from replay_service.connection import RedisEndpoint
from replay_service.redis_server import find_server
from tests.conftest import WaitUntil
from tests.faults import listens
from tests.system.conftest import Start
from tests.system.launching import SMALL_PEN, assert_sound, contents_of, processes_of, role_pids

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]

PROGRAMS = {Role.LEARNER: "learner", Role.ACTOR: "actors actor", Role.EVALUATOR: "actors evaluator"}


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_each_process_holds_its_own_credential_alone_and_works_on_after_redis_was_killed(start: Start) -> None:
    run = start(*SMALL_PEN, "--num-env-steps", "3000", "--utd-ratio", "0.5")
    before = run.wait_until(lambda state: state.env_steps > 0 and state.evaluations_done > 0)
    admin = RedisEndpoint.load(run.run_dir / "redis" / "connection.json")
    passwords = {role: role_endpoint(admin, role).password for role in Role}
    for role, module in PROGRAMS.items():
        pids = role_pids(run.run_dir, module)
        assert pids, role
        for pid in pids:
            held = environment_of(pid)
            assert passwords[role].encode() in held
            assert admin.password.encode() not in held
            assert not any(other.encode() in held for name, other in passwords.items() if name is not role)
    for line in processes_of(run.run_dir).values():
        assert not any(password in line for password in passwords.values())
    for path, content in contents_of(run.run_dir):
        assert not any(password.encode() in content for password in passwords.values()), path

    (replay,) = role_pids(run.run_dir, "replay_service")
    (server,) = Path(f"/proc/{replay}/task/{replay}/children").read_text().split()
    os.kill(int(server), signal.SIGKILL)
    assert run.wait() == 0, run.output + run.logs()
    summary = run.summary()
    assert summary["env_steps"] == 3000 > before.env_steps
    assert summary["unaccounted_steps"] == 0
    assert summary["actor_restarts"] == summary["learner_restarts"] == 0
    assert_sound(run.run_dir)


def test_a_user_with_the_documented_rights_is_enough_for_a_whole_run(
    start: Start, tmp_path: Path, wait_until: WaitUntil
) -> None:
    line = f"user awac on >PASSWORD {OWN_REDIS_RULES}"
    document = Path(__file__).parents[2] / "docs" / "security.md"
    assert f"    {line}\n" in document.read_text(encoding="utf-8")
    users, socket = tmp_path / "users.acl", tmp_path / "redis.sock"
    users.write_text(f"user default off resetpass ~* &* +@all\n{line.replace('PASSWORD', 'of-my-own')}\n")
    options = ("--port", "0", "--unixsocket", socket, "--aclfile", users, "--dir", tmp_path, "--appendonly", "yes")
    with subprocess.Popen([find_server(), *options], stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: listens(socket), "the server to open its socket")
            run = start(
                *SMALL_PEN, "--num-env-steps", "800", "--redis-url", f"unix://awac@{socket}",
                environment={"AWAC_REDIS_PASSWORD": "of-my-own"},
            )  # fmt: skip
            assert run.wait() == 0, run.output + run.logs()
            assert run.summary()["env_steps"] == 800
        finally:
            server.kill()
