from __future__ import annotations

import inspect

from replay_service import keys as keys_module
from replay_service.keys import Keys

PROPERTIES = [name for name, member in inspect.getmembers(Keys) if isinstance(member, property) and name != "state"]


def all_keys(keys: Keys) -> list[str]:
    return [*(str(getattr(keys, name)) for name in PROPERTIES), keys.actor(0), keys.actor(10)]


def test_all_keys_of_a_run_are_distinct_and_share_its_hash_tag() -> None:
    """Redis Cluster keeps keys with one hash tag in one slot, without which the scripts would be refused."""
    found = all_keys(Keys("night"))
    assert len(found) == len(PROPERTIES) + 2 == len(set(found))
    assert all("{night}" in key for key in found)


def test_none_is_left_out_where_all_are_deleted() -> None:
    keys = Keys("night")
    assert sorted(keys.but_single_actors()) == sorted(str(getattr(keys, name)) for name in PROPERTIES)


def test_two_runs_share_no_key() -> None:
    assert not set(all_keys(Keys("night"))) & set(all_keys(Keys("night2")))


def test_the_table_at_the_head_of_the_module_lists_every_key() -> None:
    table = [line.split() for line in (keys_module.__doc__ or "").splitlines()]
    listed = {words[0] for words in table if len(words) > 3 and words[1] in ("hash", "stream", "string", "set")}
    assert listed == {*PROPERTIES, "actor:<index>"}
