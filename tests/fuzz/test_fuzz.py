"""A few thousand hostile messages in every test run; `python -m tests.fuzz.messages` makes a million."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service import wire
from tests.fuzz import messages
from tests.fuzz.mutations import hostile


def test_no_reader_breaks_its_promise() -> None:
    outcomes = messages.run(4_000, seed=1)
    for outcome in ("trajectory, entry", "trajectory, bad entry", "weights, bad entry", "refused, bad entry"):
        assert outcomes[outcome] > 50, outcomes  # or the generator makes one sort alone
    assert sum(outcomes.values()) == 4_000


@given(seed=st.integers(0, 2**32), number=st.integers(0, 2**32))
@settings(max_examples=300)
def test_a_message_is_a_function_of_its_number(seed: int, number: int) -> None:
    first, again = hostile(seed, number), hostile(seed, number)
    assert (first.message, first.fields) == (again.message, again.fields)
    messages.examine(first)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand() -> None:
    messages.run(100_000, seed=2)


def test_a_reader_that_took_claims_for_granted_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that raises another error than the declared one ends the run."""
    monkeypatch.setattr(wire, "_boolean", lambda value, _name: bool(value["no such"]))
    with pytest.raises((TypeError, KeyError)):
        messages.run(200, seed=4)
