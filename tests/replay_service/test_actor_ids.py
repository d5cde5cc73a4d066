"""Actors without a launcher find numbers of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from replay_service import actor_ids
from replay_service.actor_ids import claim_actor_id
from replay_service.errors import ConfigError
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient


def test_nobody_shares_an_id_however_many_ask_at_once(redis_client: RedisClient, keys: Keys) -> None:
    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(lambda _: claim_actor_id(redis_client, keys, silence_s=60.0), range(24)))
    assert sorted(claimed) == list(range(24))


def test_an_id_is_free_again_after_its_silence(redis_client: RedisClient, keys: Keys) -> None:
    assert [claim_actor_id(redis_client, keys, silence_s=60.0) for _ in range(3)] == [0, 1, 2]
    redis_client.hset(keys.actor(1), mapping={"last_seen_ms": 1})  # silent since 1970
    assert claim_actor_id(redis_client, keys, silence_s=60.0) == 1
    assert claim_actor_id(redis_client, keys, silence_s=60.0) == 3


def test_when_every_id_is_in_use_the_next_actor_is_told_so(
    redis_client: RedisClient, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_ids, "_HIGHEST_ID", 2)
    assert [claim_actor_id(redis_client, keys, silence_s=60.0) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="--indices claim: expected a free actor id up to 2, all are in use"):
        claim_actor_id(redis_client, keys, silence_s=60.0)
