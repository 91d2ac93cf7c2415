"""Tests of who waits for whom while replicas exchange predictions batch by batch, and of where they stop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dist_train.rules.company import Company, Halt, Place

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


BOTH = (0, 1)


def asked(patience_s: float = 5.0) -> Halt:
    found = Halt(patience_s)
    found.asked("SIGTERM", 100.0)
    return found


def test_all_stop_at_the_latest_pledge_once_all_have_pledged() -> None:
    found = asked()
    assert found.pledge(0, BOTH, 7, 100.0) is None
    assert found.pledge(1, BOTH, 8, 101.0) == 8
    assert found.pledge(0, BOTH, 7, 101.0) == 8


def test_the_first_request_goes_for_all() -> None:
    found = asked()
    found.asked("SIGINT", 101.0)
    assert found.reason == "SIGTERM"


def test_pairs_stop_apart() -> None:
    found = asked()
    assert [found.pledge(each, (0, 1), 7 + each, 100.0) for each in (0, 1)] == [None, 8]
    assert [found.pledge(each, (2, 3), 30 + each, 100.0) for each in (2, 3)] == [None, 33]


def test_a_stop_waits_for_the_silent_no_longer_than_patience_lasts() -> None:
    found = asked()
    assert [found.pledge(0, BOTH, 7, now) for now in (104.9, 105.0)] == [None, 7]
    # It stops by itself when it is heard of.
    assert found.pledge(1, BOTH, 9, 106.0) == 9


def test_a_stop_waits_for_nobody_that_is_gone() -> None:
    found = asked()
    found.pledge(1, BOTH, 9, 100.0)
    found.gone(1)
    assert found.pledge(0, BOTH, 7, 100.0) == 7


def test_a_stop_waits_for_one_that_was_started_again() -> None:
    found = asked()
    found.gone(1)
    found.heard(1)
    assert found.pledge(0, BOTH, 7, 100.0) is None


def test_what_is_agreed_stays_when_one_has_left() -> None:
    found = asked()
    found.pledge(0, BOTH, 7, 100.0)
    assert found.pledge(1, BOTH, 8, 100.0) == 8
    found.gone(1)
    assert found.pledge(0, BOTH, 7, 100.0) == 8


def test_the_others_make_the_last_update_too_when_one_has_ended() -> None:
    found = asked()
    found.ended(1, 8)
    found.gone(1)
    assert found.pledge(0, BOTH, 7, 100.0) == 8


def test_one_that_cannot_catch_up_in_time_stops_where_it_is() -> None:
    found = asked()
    found.pledge(0, BOTH, 200, 100.0)
    assert [found.pledge(1, BOTH, at, now) for at, now in ((60, 101.0), (61, 105.9), (62, 106.0))] == [
        200,
        200,
        60,
    ]


def test_during_the_burn_in_each_stops_where_it_is() -> None:
    found = Halt(5.0, apart=50)
    found.pledge(0, BOTH, 50, 100.0)
    assert [found.pledge(each, BOTH, at, 100.0) for each, at in ((1, 20), (0, 50))] == [20, 50]
    # One that waits for the other's first predictions cannot stop before it has them.
    found = Halt(5.0, apart=50)
    found.pledge(0, BOTH, 51, 100.0)
    assert found.pledge(1, BOTH, 20, 100.0) == 51


class Runner:
    """A replica in slow motion: at a boundary, or inside the step that follows it."""

    def __init__(self, number: int) -> None:
        self.number, self.boundary, self.in_step, self.stopped = number, 0, False, False

    def said(self, step: int) -> bool:
        """Whether its predictions of a step are there."""
        return self.boundary > step or (self.boundary == step and self.in_step)


@given(
    st.sampled_from([{0: (1,), 1: (0,)}, {0: (1, 2), 1: (0, 2), 2: (0, 1)}, {0: (1,), 1: (2,), 2: (0,)}]),
    st.lists(st.integers(0, 2), max_size=40),
    st.integers(0, 40),
)
def test_whatever_the_order_all_stop_after_the_same_update(
    teachers: dict[int, tuple[int, ...]], order: list[int], request_at: int
) -> None:
    halt, runners = Halt(5.0), [Runner(number) for number in teachers]
    company = tuple(teachers)

    def move(runner: Runner) -> None:
        pledge = runner.boundary + runner.in_step
        target = None if halt.reason is None else halt.pledge(runner.number, company, pledge, 0.0)
        if runner.in_step:
            if all(runners[each].said(runner.boundary) for each in teachers[runner.number]):
                runner.boundary, runner.in_step = runner.boundary + 1, False
        elif halt.reason is None or (target is not None and runner.boundary < target):
            runner.in_step = True
        else:
            runner.stopped = runner.boundary == target

    for at, number in enumerate(order):
        if at == request_at:
            halt.asked("SIGTERM", 0.0)
        move(runners[number % len(runners)])
    halt.asked("SIGTERM", 0.0)
    for _ in range(10 * len(runners)):
        for runner in runners:
            move(runner)
    assert all(runner.stopped for runner in runners)
    assert len({runner.boundary for runner in runners}) == 1
