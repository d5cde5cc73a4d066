"""Give actors their numbers where no launcher does: containers of one image know no index of their own."""

from __future__ import annotations

from replay_service import scripts
from replay_service.errors import ConfigError
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient

_HIGHEST_ID = 65_535


def claim_actor_id(client: RedisClient, keys: Keys, *, silence_s: float) -> int:
    """Take the lowest actor id that nobody works under; two callers never get the same one.

    An actor that ended gives its id free `silence_s` after its last message; one that comes back sooner takes another.

    Args:
        client: of the run's Redis.
        keys: of the run.
        silence_s: seconds without a message after which an id is free.

    Raises:
        ConfigError: every id is in use.
    """
    claim = client.register_script(scripts.source("claim"))
    for actor_id in range(_HIGHEST_ID + 1):
        if claim(keys=[keys.actor(actor_id)], args=[round(1_000 * silence_s)]):
            return actor_id
    raise ConfigError(f"--indices claim: expected a free actor id up to {_HIGHEST_ID}, all are in use")
