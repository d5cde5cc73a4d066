"""A connection that breaks at a chosen byte: before a request is whole, after its script ran, within the reply."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import pytest

from actors.outbox import Outbox
from launcher.doctor import recount
from replay_service import scripts
from replay_service.connection import RedisEndpoint, connect
from replay_service.experience import ExperienceSpec
from replay_service.keys import Keys
from replay_service.patience import Patience
from replay_service.process import StopSignal
from replay_service.reports import Reports
from replay_service.run_state import RunStateStore
from replay_service.trajectory_stream import TrajectoryWriter
from tests.conftest import PATIENCE_S
from tests.damaging_client import DamagingClient

if TYPE_CHECKING:
    from tests.conftest import MakeTrajectory

BREAKS = ("within the request", "after the script ran", "within the reply")


class BreakingProxy:
    """Forwards bytes to Redis; on demand it breaks the connection around the next script call."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.break_next: str | None = None
        self.broken = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(PATIENCE_S)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                with client, socket.create_connection(("127.0.0.1", self._port)) as redis:
                    self._forward(client, redis)

    def _forward(self, client: socket.socket, redis: socket.socket) -> None:
        """One request, one reply: the client of an actor has no two requests on their way."""
        while request := client.recv(2**20):
            how = self.break_next if b"EVALSHA" in request else None
            if how == "within the request":
                redis.sendall(request[: len(request) // 2])
                return self._broke()
            redis.sendall(request)
            reply = redis.recv(2**20)
            if how == "after the script ran":
                return self._broke()
            if how == "within the reply":
                client.sendall(reply[: len(reply) // 2])
                return self._broke()
            client.sendall(reply)
        return None

    def _broke(self) -> None:
        self.break_next = None
        self.broken += 1


@pytest.fixture
def proxy(redis_endpoint: RedisEndpoint) -> Iterator[BreakingProxy]:
    begun = BreakingProxy(int(redis_endpoint.url.rpartition(":")[2]))
    yield begun
    begun.close()


@pytest.mark.parametrize("how", BREAKS)
def test_a_connection_that_breaks_loses_nothing_and_doubles_nothing(
    how: str, proxy: BreakingProxy, redis_endpoint: RedisEndpoint, redis_client: DamagingClient, keys: Keys,
    online_state: RunStateStore, spec: ExperienceSpec, make_trajectory: MakeTrajectory,
) -> None:  # fmt: skip
    client = connect(RedisEndpoint(f"redis://awac@{proxy.address}", redis_endpoint.password))
    patience = Patience("actor 0", StopSignal())
    writer = TrajectoryWriter(client, keys, spec, actor_id=0)
    outbox = Outbox(writer, resend_window_s=60.0)

    def broken(ask: Callable[[], object]) -> None:
        before = proxy.broken
        proxy.break_next = how
        assert patience.until_answered(ask) is not None
        assert proxy.broken == before + 1

    for name in ("register", "admit", "append"):  # a script that Redis does not know is sent a second time
        redis_client.script_load(scripts.source(name))
    writer.register()
    broken(lambda: writer.register(registration="once"))
    assert writer.epoch == 2
    broken(lambda: writer.request(10))
    assert online_state.read().leased_steps == 10
    for sequence in range(5):
        sent = make_trajectory(sequence, epoch=2)
        broken(partial(outbox.deliver, sent, None, want_steps=5))
    client.close()

    state, (ledger,) = Reports(redis_client, keys).state_and_actors()
    counted = recount(redis_client, keys.online, spec)
    assert (counted.bad, counted.doubled, counted.sequence_gaps, counted.missing_positions) == ([], [], [], 0)
    assert counted.steps == state.env_steps == ledger.stored_steps == 25
    assert ledger.next_sequence == 5
    assert state.duplicate_steps == (0 if how == "within the request" else 25)  # each was sent again, and known
    assert state.leased_steps == ledger.lease
