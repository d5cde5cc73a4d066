"""More or fewer actors: which pools end and which begin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.program import split_actors
from launcher.scaling import Change, plan_change

counts = st.integers(1, 200)


def pools_of(actors: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"actors-{index}": ids for index, ids in enumerate(split_actors(actors, size))}


def applied(pools: dict[str, tuple[int, ...]], change: Change) -> dict[str, tuple[int, ...]]:
    assert set(change.stop) <= set(pools)
    after = {name: ids for name, ids in pools.items() if name not in change.stop}
    for name, ids in change.start:
        assert name not in after
        after[name] = ids
    return after


@given(counts, st.lists(counts, min_size=1, max_size=6), st.integers(1, 40), st.integers(1, 40))
def test_after_any_changes_each_actor_is_in_one_pool(first: int, later: list[int], size: int, new_size: int) -> None:
    pools = pools_of(first, size)
    for wanted in later:
        before = pools
        change = plan_change(pools, wanted, pool_size=new_size)
        pools = applied(pools, change)
        assert sorted(i for ids in pools.values() for i in ids) == list(range(wanted))
        for name, ids in change.start:
            assert ids == tuple(range(ids[0], ids[-1] + 1)), name  # a range, as --indices wants it
            assert len(ids) <= new_size
        untouched = [name for name, ids in before.items() if max(ids) < wanted]
        assert set(untouched).isdisjoint(change.stop)  # who stays goes on undisturbed


def test_the_same_number_changes_nothing() -> None:
    assert plan_change(pools_of(10, 4), 10, pool_size=4) == Change((), ())


def test_a_pool_that_loses_some_begins_again_with_the_others() -> None:
    change = plan_change({"actors-0": (0, 1, 2, 3), "actors-1": (4, 5, 6, 7)}, 6, pool_size=8)
    assert change == Change(("actors-1",), (("actors-1", (4, 5)),))
