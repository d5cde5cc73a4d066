"""The slot that a pool's actors share, with real forks, real locks and real kills."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from actors.shared_weights import SharedWeights
from replay_service import wire
from replay_service.errors import WireError
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.weights_channel import WeightsChannel
from tests.conftest import PATIENCE_S

if TYPE_CHECKING:
    from tests.conftest import MakePolicyWeights

FORK = multiprocessing.get_context("fork")


def test_one_process_of_many_asks_and_all_get_the_same(
    make_policy_weights: MakePolicyWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.shared_weights._LONGEST_WAIT_S", PATIENCE_S)
    slot, message = SharedWeights(), wire.encode_policy_weights(make_policy_weights(7))
    asked, right, together = FORK.Value("i", 0), FORK.Value("i", 0), FORK.Barrier(12)

    def fetch() -> bytes:
        with asked.get_lock():
            asked.value += 1
        time.sleep(0.3)  # long enough for all to come while it is under way
        return message

    def actor() -> None:
        together.wait(PATIENCE_S)
        if slot.newest(7, fetch) == message:
            with right.get_lock():
                right.value += 1

    processes = [FORK.Process(target=actor) for _ in range(12)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
    assert (asked.value, right.value) == (1, 12)


def test_a_newer_version_replaces_an_older_and_an_older_is_never_given(make_policy_weights: MakePolicyWeights) -> None:
    slot = SharedWeights()
    messages = {v: wire.encode_policy_weights(make_policy_weights(v)) for v in (1, 5)}
    assert slot.newest(1, lambda: messages[1]) == messages[1]
    assert slot.newest(2, lambda: messages[5]) == messages[5]
    assert slot.newest(4, lambda: pytest.fail("it is here already")) == messages[5]


def test_what_is_damaged_is_not_handed_on(make_policy_weights: MakePolicyWeights) -> None:
    slot, message = SharedWeights(), wire.encode_policy_weights(make_policy_weights(1))
    with pytest.raises(WireError):
        slot.newest(1, lambda: message[:-3])
    assert slot.newest(1, lambda: message) == message


def test_an_actor_that_is_killed_while_it_fetches_keeps_nobody_waiting(make_policy_weights: MakePolicyWeights) -> None:
    slot, message = SharedWeights(), wire.encode_policy_weights(make_policy_weights(1))
    is_inside = FORK.Event()

    def hang() -> bytes:
        is_inside.set()
        time.sleep(600)
        return message

    process = FORK.Process(target=lambda: slot.newest(1, hang))
    process.start()
    assert is_inside.wait(PATIENCE_S)
    assert slot.newest(1, lambda: message) == message  # gives the wait up: the other one may wait for Redis
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(PATIENCE_S)
    assert slot.newest(1, lambda: message) == message
    assert slot.newest(1, lambda: pytest.fail("the slot is free and filled")) == message


def test_the_message_comes_from_redis_as_it_was_published(
    redis_client: RedisClient, keys: Keys, make_policy_weights: MakePolicyWeights
) -> None:
    channel, slot = WeightsChannel(redis_client, keys), SharedWeights()
    assert slot.newest(1, channel.message) is None
    channel.publish(make_policy_weights(1))
    assert slot.newest(1, channel.message) == redis_client.get(keys.weights)
