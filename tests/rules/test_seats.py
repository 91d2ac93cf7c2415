"""Tests of who waits for what."""

from __future__ import annotations

import pytest

from dist_train.rules.decisions import Waiting
from dist_train.rules.messages import Push, Version
from dist_train.rules.seats import Seat, Seats

GRADIENT = Push(0, 0, 3, 1, Version(0, 4), 4, 1.0)


def waiting(untaken: bool = False) -> Seats:
    """A member whose gradient is to be in update 5."""
    seats = Seats()
    seats.take(0, Seat(0, 3, "counted", Version(0, 5), GRADIENT, Version(0, 5), untaken))
    return seats


class TestCauseOfWaiting:
    @pytest.mark.parametrize(
        ("causes", "told"),
        [
            ([], "work"),
            (["server"], "server"),
            (["bound", "server"], "bound"),
            (["quorum", "server"], "quorum"),
            (["server", "bound"], "bound"),
            (["quorum", "bound"], "bound"),
        ],
    )
    def test_is_not_the_server_whose_part_comes_last(self, causes: list[Waiting], told: Waiting) -> None:
        seat = Seat(0, 3, "counted", Version(0, 5))
        for cause in causes:
            seat.waits_for(cause)
        assert seat.waited_for == told


class TestSeats:
    def test_who_is_answered_waits_no_more(self) -> None:
        seats = waiting()
        assert seats.leave(0).outcome == "counted"
        assert seats.members == []
        with pytest.raises(KeyError):
            seats.leave(0)

    def test_who_measures_comes_back_to_what_it_waited_for(self) -> None:
        seats = waiting(untaken=True)
        seats.leave(0, to_measure=True)
        seats.come_back(0, 0, 4, Version(0, 4))
        assert (seats[0].sequence, seats[0].needs, seats[0].untaken) == (4, Version(0, 5), True)

    def test_who_measures_waits_for_nothing_if_it_did_not_before(self) -> None:
        seats = Seats()
        seats.come_back(1, 0, 4, Version(0, 4))
        assert (seats[1].outcome, seats[1].needs) == ("counted", Version(0, 4))

    def test_memory_is_free_when_its_gradient_is_read_though_its_member_measures(self) -> None:
        seats = waiting(untaken=True)
        seats.leave(0, to_measure=True)
        seats.taken(GRADIENT)
        seats.come_back(0, 0, 4, Version(0, 4))
        assert not seats[0].untaken

    def test_who_loses_its_gradient_waits_for_no_update(self) -> None:
        seats = waiting(untaken=True)
        seats.lose([GRADIENT], Version(0, 4))
        assert (seats[0].outcome, seats[0].needs, seats[0].untaken) == ("void", Version(0, 4), False)

    def test_who_lost_it_while_measuring_hears_of_its_measurement(self) -> None:
        seats = waiting()
        seats.leave(0, to_measure=True)
        seats.come_back(0, 0, 4, Version(0, 4))
        seats.lose([GRADIENT], Version(0, 4))
        assert (seats[0].outcome, seats[0].needs) == ("counted", Version(0, 4))

    @pytest.mark.parametrize(("number", "outcome"), [(4, "void"), (5, "counted")])
    def test_a_return_to_before_its_update_makes_a_gradient_void(self, number: int, outcome: str) -> None:
        seats = waiting(untaken=True)
        seats.roll_back(Version(1, number))
        assert (seats[0].outcome, seats[0].needs, seats[0].untaken) == (outcome, Version(1, number), False)

    def test_who_is_gone_is_forgotten(self) -> None:
        seats = waiting()
        seats.leave(0, to_measure=True)
        seats.vacate(0)
        seats.come_back(0, 1, 1, Version(0, 4))
        assert seats[0].needs == Version(0, 4)

    def test_all_are_read_while_each_waits_with_a_gradient_that_is_not_in(self) -> None:
        seats = waiting(untaken=True)
        assert seats.all_read([0], Version(0, 4))
        assert not seats.all_read([0, 1], Version(0, 4))
        assert not seats.all_read([0], Version(0, 5))
        seats.leave(0, to_measure=True)
        assert not seats.all_read([0], Version(0, 4))
