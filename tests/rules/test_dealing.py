"""Tests of the dealer: every sample is trained, out, or still to be dealt, and never two of these."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dist_train.rules.dealing import Dealer, Deck, merged
from dist_train.rules.messages import Lease
from dist_train.rules.sampling import Position, Run


def dealer(deck: Deck, epochs: int = 2, unfinished: tuple[Run, ...] = (), offset: int = 0) -> Dealer:
    return Dealer(deck, lambda at, _: at.epoch < epochs, Position(0, offset), unfinished)


def dealt(made: Dealer, *members: int) -> list[tuple[int, int, int] | None]:
    leases = [made.deal(member) for member in members]
    return [None if lease is None else (lease.epoch, lease.offset, lease.count) for lease in leases]


class TestLeases:
    def test_an_update_is_cut_into_near_equal_leases(self) -> None:
        made = dealer(Deck(size=10, batch=7, parts=3))
        assert dealt(made, 0, 1, 2) == [(0, 0, 3), (0, 3, 2), (0, 5, 2)]
        assert dealt(made, 2, 0, 1) == [(0, 7, 1), (0, 8, 1), (0, 9, 1)]

    def test_the_last_batch_is_kept_or_dropped(self) -> None:
        assert dealt(dealer(Deck(5, 4, 1)), 0, 0, 0) == [(0, 0, 4), (0, 4, 1), (1, 0, 4)]
        assert dealt(dealer(Deck(5, 4, 1, "drop")), 0, 0, 0) == [(0, 0, 4), (1, 0, 4), None]

    def test_what_is_taken_back_is_dealt_next(self) -> None:
        made = dealer(Deck(12, 4, 1))
        lease, _ = made.deal(0), made.deal(1)
        assert lease is not None
        made.take_back(lease.number)
        assert made.deal(1) == lease

    def test_what_came_too_late_is_dealt_to_others_first(self) -> None:
        made = dealer(Deck(12, 4, 1), epochs=1)
        lease = made.deal(0)
        assert lease is not None
        made.take_back(lease.number, in_vain=True)
        other = made.deal(0, live=[0, 1])
        assert other is not None
        assert other.offset == 4
        assert made.deal(1, live=[0, 1]) == lease

    def test_but_to_the_same_member_when_nobody_or_nothing_else_is_there(self) -> None:
        made = dealer(Deck(8, 4, 1), epochs=1)
        first = made.deal(0)
        assert first is not None
        made.take_back(first.number, in_vain=True)
        assert made.deal(0, live=[0]) == first
        made.take_back(first.number, in_vain=True)
        assert made.deal(0, live=[0, 1]) == Lease(2, 0, 4, 4)
        assert made.deal(0, live=[0, 1]) == first

    def test_once_all_were_too_late_it_is_anybodys(self) -> None:
        made = dealer(Deck(12, 4, 1))
        for member in (0, 1):
            lease = made.deal(member, live=[0, 1])
            assert lease == Lease(1, 0, 0, 4)
            made.take_back(lease.number, in_vain=True)
        assert made.deal(0, live=[0, 1]) == Lease(1, 0, 0, 4)

    def test_who_is_gone_gives_back_all_but_what_is_in(self) -> None:
        made = dealer(Deck(12, 4, 1))
        first, second, third = (made.deal(0) for _ in range(3))
        assert first is not None
        assert made.take_back_from(0, but=[first.number]) == [second, third]
        assert made.deal(1) == second

    def test_a_lease_belongs_to_one_member_until_it_is_finished(self) -> None:
        made = dealer(Deck(8, 4, 1))
        lease = made.deal(0)
        assert lease is not None
        assert made.holds(0, lease.number)
        assert not made.holds(1, lease.number)
        assert made.lease(lease.number) == lease
        assert made.finish(lease.number) == lease
        assert made.lease(lease.number) is None
        with pytest.raises(KeyError):
            made.take_back(lease.number)

    def test_what_an_earlier_run_left_comes_first_in_the_updates_it_would_have_made(self) -> None:
        made = dealer(Deck(20, 4, 2), unfinished=(Run(0, 2, 6),), offset=8)
        assert dealt(made, *range(6)) == [(0, 2, 2), (0, 4, 2), (0, 6, 1), (0, 7, 1), (0, 8, 2), (0, 10, 2)]

    def test_leases_withdrawn_are_never_known_again(self) -> None:
        made = dealer(Deck(8, 4, 1))
        old = made.deal(0)
        made.restart(Position(0, 0), (), 0)
        new = made.deal(0)
        assert old is not None
        assert new is not None
        assert (old.offset, old.count) == (new.offset, new.count)
        assert not made.holds(0, old.number)

    def test_it_is_exhausted_when_all_is_trained(self) -> None:
        made = dealer(Deck(4, 4, 1), epochs=1)
        lease = made.deal(0)
        assert lease is not None
        assert not made.exhausted
        assert made.exhausted_after([lease.number])
        made.finish(lease.number)
        assert made.exhausted


class TestInStep:
    def test_an_epoch_begins_when_the_one_before_is_trained(self) -> None:
        made = dealer(Deck(4, 4, 2, in_step=True))
        first, second = made.deal(0), made.deal(1)
        assert not made.can_deal
        assert made.deal(0) is None
        for lease in (first, second):
            assert lease is not None
            made.finish(lease.number)
        assert dealt(made, 1) == [(1, 0, 2)]

    def test_fresh_samples_come_when_the_unfinished_are_trained(self) -> None:
        made = dealer(Deck(20, 4, 2, in_step=True), unfinished=(Run(0, 3, 1),), offset=4)
        lease = made.deal(0)
        assert made.deal(1) is None
        assert lease == Lease(1, 0, 3, 1)
        made.finish(lease.number)
        assert dealt(made, 1) == [(0, 4, 2)]

    def test_nobody_has_two_leases_of_an_update_in_hand(self) -> None:
        made = dealer(Deck(20, 4, 2, in_step=True))
        assert dealt(made, 0, 0, 1, 1) == [(0, 0, 2), (0, 4, 2), (0, 2, 2), (0, 6, 2)]


class TestRuns:
    def test_runs_that_touch_are_joined_in_order(self) -> None:
        runs = [Run(1, 0, 2), Run(0, 6, 2), Run(0, 0, 3), Run(0, 3, 1)]
        assert merged(runs) == (Run(0, 0, 4), Run(0, 6, 2), Run(1, 0, 2))


class Dealing(RuleBasedStateMachine):
    """Leases dealt, finished, taken back and withdrawn in any order."""

    @initialize(
        size=st.integers(4, 20), share=st.integers(1, 4), parts=st.integers(1, 3), in_step=st.booleans()
    )
    def begin(self, size: int, share: int, parts: int, in_step: bool) -> None:
        self.size, self.in_step = size, in_step
        self.dealer = dealer(Deck(size, share * parts, parts, in_step=in_step))
        self.out: list[tuple[int, Lease]] = []
        self.trained: list[tuple[int, int]] = []

    @rule(member=st.integers(0, 3), live=st.sets(st.integers(0, 3)))
    def deal(self, member: int, live: set[int]) -> None:
        could, lease = self.dealer.can_deal, self.dealer.deal(member, live)
        if could and not self.in_step:
            assert lease is not None
        if lease is not None:
            assert could
            self.out.append((member, lease))

    @rule(which=st.integers(0, 30))
    def finish(self, which: int) -> None:
        if self.out:
            _, lease = self.out.pop(which % len(self.out))
            assert self.dealer.finish(lease.number) == lease
            self.trained += [(lease.epoch, lease.offset + place) for place in range(lease.count)]

    @rule(which=st.integers(0, 30))
    def come_late(self, which: int) -> None:
        if self.out:
            _, lease = self.out.pop(which % len(self.out))
            assert self.dealer.take_back(lease.number, in_vain=True) == lease

    @rule(member=st.integers(0, 3))
    def take_back(self, member: int) -> None:
        mine = [lease for holder, lease in self.out if holder == member]
        assert self.dealer.take_back_from(member) == mine
        self.out = [(holder, lease) for holder, lease in self.out if holder != member]

    @rule()
    def restart(self) -> None:
        self.dealer.restart(self.dealer.position, self.dealer.unfinished, len(self.trained))
        self.out = []

    @invariant()
    def every_sample_is_in_one_place(self) -> None:
        if not hasattr(self, "dealer"):
            return
        left = [
            (run.epoch, place)
            for run in self.dealer.unfinished
            for place in range(run.offset, run.offset + run.count)
        ]
        at = self.dealer.position
        drawn = [(e, p) for e in range(3) for p in range(self.size) if (e, p) < (at.epoch, at.offset)]
        assert sorted(left + self.trained) == drawn
        assert self.dealer.trained == len(self.trained)
        assert self.dealer.exhausted == (len(self.trained) == 2 * self.size)


TestDealing = Dealing.TestCase
TestDealing.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
