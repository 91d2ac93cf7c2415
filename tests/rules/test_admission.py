"""Tests of the admission rule alone: which gradient counts, and when an update is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.rules.admission import Admission, Rule
from dist_train.rules.messages import Push, Version


def gradient(
    member: int, sequence: int = 1, version: int = 0, era: int = 0, incarnation: int = 0, finite: bool = True
) -> Push:
    return Push(member, incarnation, sequence, sequence, Version(era, version), 4, 1.0, finite)


def admission(rule: Rule, members: int = 3) -> Admission:
    made = Admission(rule, members)
    for member in range(members):
        made.join(member, 0)
    return made


class TestMessages:
    def test_one_that_comes_twice_counts_once(self) -> None:
        made = admission(Rule(3))
        assert [made.offer(gradient(0)), made.offer(gradient(0))] == ["counted", "repeated"]
        assert len(made.gathered) == 1

    def test_one_that_was_overtaken_is_of_the_past(self) -> None:
        made = admission(Rule(3))
        made.offer(gradient(0, sequence=2))
        assert made.offer(gradient(0, sequence=1)) == "ended"

    def test_those_of_a_replaced_process_are_of_the_past(self) -> None:
        made = admission(Rule(3))
        assert made.join(0, 1)
        assert made.offer(gradient(0)) == "ended"
        assert made.offer(gradient(0, incarnation=1)) == "counted"

    def test_nobody_takes_the_place_of_a_later_process(self) -> None:
        made = admission(Rule(3))
        made.join(0, 2)
        assert not made.join(0, 1)
        assert made.join(0, 2)

    def test_who_has_left_is_heard_no_more(self) -> None:
        made = admission(Rule(3))
        assert made.leave(0, 0)
        assert not made.leave(0, 0)
        assert made.offer(gradient(0)) == "ended"
        assert made.live == [1, 2]


class TestVerdicts:
    def test_what_is_not_finite_is_refused(self) -> None:
        assert admission(Rule(1)).offer(gradient(0, finite=False)) == "refused"

    def test_what_is_not_the_members_to_train_on_is_void(self) -> None:
        made = admission(Rule(1))
        assert made.offer(gradient(0), rightful=False) == "void"
        assert made.gathered == []

    def test_a_lost_era_is_void(self) -> None:
        made = admission(Rule(1))
        made.roll_back(0)
        assert made.offer(gradient(0)) == "void"
        assert made.offer(gradient(0, sequence=2, era=1)) == "counted"

    @pytest.mark.parametrize(("drop", "verdict"), [(True, "dropped"), (False, "counted")])
    def test_a_stale_one_is_dropped_or_not(self, drop: bool, verdict: str) -> None:
        made = admission(Rule(1, drop_late=drop))
        made.offer(gradient(0))
        made.decide()
        assert made.offer(gradient(1)) == verdict

    @pytest.mark.parametrize(("drop", "verdict"), [(True, "dropped"), (False, "counted")])
    def test_so_is_one_that_finds_the_update_full(self, drop: bool, verdict: str) -> None:
        made = admission(Rule(1, drop_late=drop))
        made.offer(gradient(0))
        assert made.offer(gradient(1)) == verdict
        assert [each.push.member for each in made.decide()] == [0]


class TestUpdates:
    def test_the_quorum_completes_one(self) -> None:
        made = admission(Rule(2))
        made.offer(gradient(0))
        assert not made.complete([1, 2])
        made.offer(gradient(1))
        assert made.complete([2])
        assert made.update_of(gradient(1)) == Version(0, 1)

    def test_nobody_is_waited_for_who_has_no_work(self) -> None:
        made = admission(Rule(3))
        made.offer(gradient(0))
        assert not made.complete([0, 1])
        assert made.complete([0])
        assert made.complete([])

    def test_an_update_of_nothing_is_never_complete(self) -> None:
        assert not admission(Rule(1)).complete([])

    def test_a_gradient_that_had_to_wait_is_as_stale_as_it_became(self) -> None:
        made = admission(Rule(1))
        for member in range(3):
            made.offer(gradient(member))
        assert made.update_of(gradient(2)) == Version(0, 3)
        assert [made.decide()[0].staleness for _ in range(3)] == [0, 1, 2]

    def test_another_quorum_waits_for_the_update_in_the_making(self) -> None:
        made = admission(Rule(3))
        made.offer(gradient(0))
        made.change(Rule(1))
        assert not made.complete([1, 2])
        made.abandon()
        made.offer(gradient(1))
        assert made.complete([0, 2])


class TestBound:
    @given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 3))
    def test_who_may_read_is_at_most_so_many_clocks_ahead(self, order: list[int], bound: int) -> None:
        made, clocks = admission(Rule(1, bound=bound)), [0, 0, 0]
        for sequence, member in enumerate(order, start=1):
            made.offer(gradient(member, sequence=sequence, version=made.version.number))
            made.decide()
            clocks[member] += 1
            ahead = [clock - min(clocks) for clock in clocks]
            assert [made.may_read(each, range(3)) for each in range(3)] == [each <= bound for each in ahead]

    def test_a_new_process_starts_with_the_slowest(self) -> None:
        made = admission(Rule(1, bound=0))
        made.leave(2, 0)
        for member in (0, 1):
            made.offer(gradient(member))
            made.decide()
        made.join(2, 1)
        assert made.may_read(0, range(3))

    def test_what_does_not_count_moves_no_clock(self) -> None:
        made = admission(Rule(1, bound=0))
        made.offer(gradient(0), rightful=False)
        made.offer(gradient(0, sequence=2, finite=False))
        assert made.may_read(0, range(3))

    def test_who_did_something_else_is_not_waited_for(self) -> None:
        made = admission(Rule(1, bound=0))
        for member in (0, 1):
            made.offer(gradient(member))
            made.decide()
        assert not made.may_read(0, range(3))
        made.catch_up(2, range(3))
        assert made.may_read(0, range(3))

    def test_what_was_given_at_clock_c_minus_s_minus_1_must_be_published(self) -> None:
        made = admission(Rule(1, bound=1), members=2)
        for number, member in enumerate((0, 1, 0), start=1):
            made.offer(gradient(member, sequence=number, version=number - 1))
            made.decide()
        # Member 0 is at clock 2, member 1 at clock 1: updates 1 and 2 were given at clock 0.
        assert [made.sees_enough(member) for member in (0, 1)] == [False, True]
        made.applied(Version(0, 1))
        assert not made.sees_enough(0)
        made.applied(Version(0, 2))
        assert made.sees_enough(0)

    def test_what_is_in_no_update_need_not_be_published(self) -> None:
        made = admission(Rule(2, bound=0))
        made.offer(gradient(0))
        assert not made.sees_enough(0)
        made.abandon()
        assert made.sees_enough(0)


class TestRounds:
    @pytest.mark.parametrize(
        ("rule", "rounds"),
        [
            (Rule(3), True),
            (Rule(2, drop_late=True), True),
            (Rule(1, drop_late=True), True),
            (Rule(1), False),
            (Rule(1, bound=2), False),
            (Rule(3, read_own=False), False),
        ],
    )
    def test_modes_with_a_quorum_to_wait_for_read_the_newest_version(self, rule: Rule, rounds: bool) -> None:
        assert rule.reads_newest == rounds
