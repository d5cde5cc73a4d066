"""An actor in one network namespace, Redis in another: what the link does to messages must not show in the ledger."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tomli_w

from launcher.doctor import recount
from replay_service.config import ReplayConfig, RunConfig
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.redis_server import find_server
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunState, RunStateStore
from replay_service.weights_channel import WeightsChannel
from tests.faults import listens
from tests.lossy_link import LossyLink
from tests.system.episodes import follow_episodes

if TYPE_CHECKING:
    from tests.conftest import MakePolicyWeights, WaitUntil

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

ACTOR_ADDRESS, REDIS_ADDRESS = "10.213.77.1", "10.213.77.2"
PORT = 6390
PASSWORD = "of-this-test"
REPLY_TIMEOUT_S = 2


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Link:
    """Two network namespaces and the pair of interfaces between them."""

    def __init__(self) -> None:
        self.actor, self.redis = (f"awac-{side}-{os.getpid()}" for side in ("actor", "redis"))
        for namespace in (self.actor, self.redis):
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        ip("link", "add", "actor0", "netns", self.actor, "type", "veth", "peer", "name", "redis0", "netns", self.redis)
        for namespace, device, address in (
            (self.actor, "actor0", ACTOR_ADDRESS),
            (self.redis, "redis0", REDIS_ADDRESS),
        ):
            ip("-n", namespace, "address", "add", f"{address}/30", "dev", device)
            ip("-n", namespace, "link", "set", device, "up")

    def close(self) -> None:
        for namespace in (self.actor, self.redis):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)

    @contextmanager
    def without_replies(self) -> Iterator[None]:
        """What the actor sends arrives; nothing that Redis says does."""
        ip("-n", self.redis, "route", "add", "blackhole", f"{ACTOR_ADDRESS}/32")
        try:
            yield
        finally:
            ip("-n", self.redis, "route", "del", "blackhole", f"{ACTOR_ADDRESS}/32")

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Nothing arrives anywhere."""
        ip("-n", self.actor, "link", "set", "actor0", "down")
        try:
            yield
        finally:
            ip("-n", self.actor, "link", "set", "actor0", "up")

    @contextmanager
    def slow_and_lossy(self) -> Iterator[LossyLink]:
        """200 ms there and back, every twentieth packet of either direction lost; connections that stand move over."""
        names = f"awac{os.getpid()}a", f"awac{os.getpid()}r"
        with LossyLink(names, delay_s=0.1, loss=0.05) as worse:
            for device, namespace, own, other in (
                (names[0], self.actor, ACTOR_ADDRESS, REDIS_ADDRESS),
                (names[1], self.redis, REDIS_ADDRESS, ACTOR_ADDRESS),
            ):
                ip("link", "set", device, "netns", namespace)
                ip("-n", namespace, "link", "set", device, "mtu", "1500", "up")
                ip("-n", namespace, "route", "add", f"{other}/32", "dev", device, "src", own)
            yield worse


@pytest.fixture
def link() -> Iterator[Link]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        made = Link()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    yield made
    made.close()


class Drill:
    """A run whose only actor works at full speed on the other side of the link; the test plays the learner."""

    def __init__(self, link: Link, run: RunConfig, weights: Any, folder: Path, wait_until: WaitUntil) -> None:
        self.link, self.run, self._wait_until = link, run, wait_until
        socket = folder / "redis.sock"
        self._redis = subprocess.Popen(
            [
                "ip", "netns", "exec", link.redis, str(find_server()), "--bind", REDIS_ADDRESS, "--port", str(PORT),
                "--requirepass", PASSWORD, "--unixsocket", str(socket), "--dir", str(folder), "--appendonly", "yes",
                "--save", "", "--logfile", str(folder / "server.log"),
            ]
        )  # fmt: skip
        wait_until(lambda: listens(socket), "Redis to open its socket")
        self.client = connect(RedisEndpoint(f"unix://{socket}", PASSWORD))  # leads past the link
        self.keys = Keys(run.run_id)
        self.state = RunStateStore(self.client, self.keys)
        self.state.initialise(run)
        WeightsChannel(self.client, self.keys).publish(weights, enter=Phase.ONLINE)
        config, self.log = folder / "run.toml", folder / "actor.log"
        config.write_bytes(tomli_w.dumps(asdict(run)).encode())
        with self.log.open("wb") as output:
            self._actor = subprocess.Popen(
                ["ip", "netns", "exec", link.actor, sys.executable, "-m", "actors", "actor", "--config", str(config)],
                env={
                    **os.environ,
                    "AWAC_REDIS_URL": f"redis://{REDIS_ADDRESS}:{PORT}?socket_timeout={REPLY_TIMEOUT_S}",
                    "AWAC_REDIS_PASSWORD": PASSWORD,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.wait_for_steps(200)

    def read(self) -> RunState:
        return self.state.read()

    def wait_for_steps(self, more: int) -> None:
        goal = self.read().env_steps + more
        self._wait_until(lambda: self.read().env_steps >= goal, f"{more} more steps\n{self.log.read_text()}")

    def wait_until_nothing_arrives(self) -> int:
        """Steps stored once no more have come for a second."""
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < 1.0:
            if (steps := self.read().appended_steps) != seen:
                seen, since = steps, time.monotonic()
            time.sleep(0.01)
        return seen

    def leave_and_count(self) -> int:
        """End the actor in order and prove its experience whole; returns the steps that were sent twice."""
        self._actor.terminate()
        assert self._actor.wait(120) == 0, self.log.read_text()
        state, (ledger,) = Reports(self.client, self.keys).state_and_actors()
        counted = recount(self.client, self.keys.online, self.run.spec)
        assert (counted.bad, counted.doubled, counted.sequence_gaps, counted.missing_positions) == ([], [], [], 0)
        assert counted.steps == state.env_steps == state.appended_steps == ledger.stored_steps
        assert state.leased_steps == ledger.lease == 0
        assert (ledger.epoch, ledger.restarts) == (1, 0)  # it never had to begin anew, so it left nothing out
        assert counted.entries == ledger.next_sequence
        assert follow_episodes(self.client, self.keys.online, self.run.spec) == {0: ledger.stored_steps}
        return state.duplicate_steps

    def close(self) -> None:
        for process in (self._actor, self._redis):
            process.kill()
            process.wait()


@pytest.fixture
def drill(
    link: Link, run_config: RunConfig, make_policy_weights: MakePolicyWeights, tmp_path: Path, wait_until: WaitUntil
) -> Iterator[Drill]:
    run = replace(
        run_config,
        actors=1,
        num_env_steps=10_000_000,
        initial_env_steps=10_000_000,
        replay=ReplayConfig(capacity=10_000_000),
    )
    begun = Drill(link, run, make_policy_weights(1), tmp_path, wait_until)
    yield begun
    begun.close()


def test_a_reply_that_is_lost_after_its_script_ran_stores_nothing_twice(drill: Drill) -> None:
    for cut in range(1, 4):
        with drill.link.without_replies():
            stored = drill.wait_until_nothing_arrives()
            time.sleep(REPLY_TIMEOUT_S + 1.0)  # the actor gives the reply up, and its connection
            assert drill.read().appended_steps == stored
        drill.wait_for_steps(200)
        assert drill.read().duplicate_steps >= cut  # the message whose reply was lost had been stored, and is known
    assert drill.leave_and_count() >= 3
    assert "waits for Redis" in drill.log.read_text()


@pytest.mark.parametrize("seconds", [4.0, 60.0])
def test_a_partition_is_waited_out(drill: Drill, seconds: float) -> None:
    for _ in range(3 if seconds < 10 else 1):
        with drill.link.cut():
            stored = drill.wait_until_nothing_arrives()
            time.sleep(seconds)
            assert drill.read().appended_steps == stored
        drill.wait_for_steps(200)
    drill.leave_and_count()
    assert "Redis answers again" in drill.log.read_text()


def test_short_cuts_at_any_moment(drill: Drill) -> None:
    random = np.random.default_rng(7)
    for _ in range(12):
        time.sleep(float(random.uniform(0.0, 0.3)))
        with drill.link.cut():
            time.sleep(float(random.uniform(0.0, 1.5)))
    drill.wait_for_steps(200)
    drill.leave_and_count()


def test_a_slow_link_that_loses_packets(drill: Drill) -> None:
    with drill.link.slow_and_lossy() as worse:
        began = time.monotonic()
        for _ in range(3):
            drill.wait_for_steps(300)
        took_s = time.monotonic() - began
    assert worse.lost >= 3
    assert worse.carried > 10 * worse.lost
    assert took_s > 0.2  # no append comes back sooner than the link's round trip
    drill.wait_for_steps(200)
    drill.leave_and_count()
