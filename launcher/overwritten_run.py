"""What a run that is overwritten leaves in a Redis of the user's own: nothing."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from launcher.run_directory import RunDirectory
from replay_service.config_file import load_run_config
from replay_service.connection import FAREWELL_ERRORS, RedisEndpoint, connect, password_from_environment
from replay_service.errors import UserError
from replay_service.keys import Keys

_LEFT_ALONE: tuple[type[Exception], ...] = (*FAREWELL_ERRORS, UserError)

_log = logging.getLogger(__name__)


def delete_from_redis(aside: Path) -> None:
    """Delete the keys of a run whose directory is about to be deleted; an embedded Redis goes with that directory.

    Where it cannot be done, the log says what stays: the new run is not to suffer for it.

    Args:
        aside: the run's directory.
    """
    run_id = ""
    try:
        run = load_run_config(RunDirectory(aside).config)
        run_id = run.run_id
        if not run.redis_url:
            return
        client = connect(RedisEndpoint.from_url(run.redis_url, password_from_environment()))
        try:
            # By their names: a user that has only what a run needs may not list keys.
            keys = Keys(run_id)
            actors = [keys.actor(int(index)) for index in client.smembers(keys.actors) if index.isdigit()]
            found = client.delete(*keys.but_single_actors(), *actors)
        finally:
            client.close()
    except _LEFT_ALONE as error:
        _log.warning("the overwritten run %r stays in its Redis: %s", run_id, error)
        print(f"warning: the overwritten run {run_id!r} stays in its Redis: {error}", file=sys.stderr)
    else:
        _log.info("deleted %d keys of the overwritten run %r from its Redis", found, run_id)
