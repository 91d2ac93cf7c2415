"""Tests of who waits for whom while replicas exchange predictions batch by batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dist_train.rules.company import Company, Place

HERE, BEFORE, LATER = Place(10, 1), Place(10, 0), Place(11, 0)


def company() -> Company:
    return Company(replicas=2, patience_s=5.0, meeting_s=60.0, now=100.0)


def test_in_the_beginning_all_are_expected() -> None:
    found = company()
    assert [found.stance(1, HERE, 100.0, now) for now in (100.0, 159.0, 161.0)] == ["wait", "wait", "without"]


def test_one_that_is_slower_is_waited_for_from_when_somebody_began_to_wait() -> None:
    found = company()
    found.heard(1, BEFORE, 200.0)
    # Both validated for a minute; the other one is a little later.
    assert [found.stance(1, HERE, 260.0, now) for now in (260.0, 264.0, 265.0)] == ["wait", "wait", "without"]


def test_one_that_was_waited_for_in_vain_is_not_again() -> None:
    found = company()
    found.heard(1, BEFORE, 200.0)
    assert found.stance(1, HERE, 200.0, 205.0) == "without"
    assert found.stance(1, LATER, 206.0, 206.0) == "without"


def test_until_it_is_heard_of_then_it_has_time_to_catch_up() -> None:
    found = company()
    found.heard(1, BEFORE, 200.0)
    assert found.stance(1, HERE, 200.0, 300.0) == "without"
    found.heard(1, Place(3, 0), 301.0)
    assert found.stance(1, HERE, 302.0, 302.0) == "wait"


def test_what_one_has_left_behind_does_not_come_any_more() -> None:
    found = company()
    found.heard(1, LATER, 200.0)
    assert found.stance(1, HERE, 200.0, 200.0) == "without"


def test_nobody_waits_for_one_that_is_gone() -> None:
    found = company()
    found.heard(1, BEFORE, 200.0)
    found.gone(1)
    assert found.stance(1, HERE, 200.0, 200.0) == "without"


def test_one_that_was_started_again_is_waited_for_once_it_is_heard_of() -> None:
    found = company()
    found.gone(1)
    found.heard(1, BEFORE, 200.0)
    assert found.stance(1, HERE, 201.0, 201.0) == "wait"


@given(
    st.lists(st.tuples(st.sampled_from(["heard", "gone"]), st.integers(0, 5), st.floats(0, 100))),
    st.integers(0, 5),
)
def test_nobody_waits_for_ever(signs: list[tuple[str, int, float]], here: int) -> None:
    found, now = Company(2, 5.0, 60.0, 0.0), 0.0
    for kind, updates, later in signs:
        now += later
        if kind == "heard":
            found.heard(1, Place(updates, 0), now)
        else:
            found.gone(1)
    assert found.stance(1, Place(here, 0), now, max(now + 5.0, 60.0)) == "without"
