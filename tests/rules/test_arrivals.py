"""Tests of what is measured before the number of backup workers is chosen."""

from __future__ import annotations

from dist_train.rules.arrivals import MEASURED, WARMING, Arrivals, most_backups
from dist_train.rules.messages import Version

# Three workers take a second and one takes nine: b = 1 makes 9/1 * 3/4 as many samples per second.
TIMES = (1.0, 1.0, 1.0, 9.0)


def watch(arrivals: Arrivals, first: int, count: int, times: tuple[float, ...] = TIMES) -> None:
    """Have ``count`` versions released, ten seconds after each other, and everybody answer each."""
    for number in range(first, first + count):
        arrivals.released(Version(0, number), 10.0 * number)
        for member, seconds in enumerate(times):
            arrivals.arrived(member, Version(0, number), 10.0 * number + seconds)


def test_the_choice_is_made_when_enough_versions_were_measured() -> None:
    arrivals = Arrivals(4)
    watch(arrivals, 1, WARMING + MEASURED)
    assert arrivals.choice() is None
    arrivals.released(Version(0, 99), 990.0)
    choice = arrivals.choice()
    assert choice is not None
    assert (choice.backups, choice.table[1].step_s, choice.table[1].speedup) == (1, 1.0, 6.75)


def test_the_first_versions_do_not_count() -> None:
    arrivals = Arrivals(4)
    watch(arrivals, 1, WARMING, (1.0, 1.0, 1.0, 1000.0))
    watch(arrivals, 1 + WARMING, MEASURED, (2.0, 2.0, 2.0, 2.0))
    arrivals.released(Version(0, 99), 990.0)
    choice = arrivals.choice()
    assert choice is not None
    assert choice.table[0].step_s == 2.0


def test_at_most_half_of_the_groups_are_backups() -> None:
    assert [most_backups(groups) for groups in (1, 2, 5, 8)] == [0, 1, 2, 4]
    arrivals = Arrivals(4)
    watch(arrivals, 1, WARMING + MEASURED, (1.0, 9.0, 9.0, 9.0))
    arrivals.released(Version(0, 99), 990.0)
    choice = arrivals.choice()
    assert choice is not None
    assert [candidate.backups for candidate in choice.table] == [0, 1, 2]


def test_a_version_to_which_somebody_gave_nothing_is_left_out() -> None:
    arrivals = Arrivals(4)
    watch(arrivals, 1, 10 * MEASURED, TIMES[:3])
    assert arrivals.choice() is None


def test_a_gradient_of_another_version_or_another_era_tells_nothing() -> None:
    arrivals = Arrivals(1)
    for number in range(1, 2 * (WARMING + MEASURED)):
        arrivals.released(Version(1, number), 1.0 * number)
        arrivals.arrived(0, Version(1, number - 1), 1.0 * number)
        arrivals.arrived(0, Version(0, number), 1.0 * number)
    assert arrivals.choice() is None


def test_of_two_gradients_of_one_member_the_first_tells_when_it_came() -> None:
    arrivals = Arrivals(1)
    for number in range(1, 2 + WARMING + MEASURED):
        arrivals.released(Version(0, number), 10.0 * number)
        for seconds in (2.0, 5.0):
            arrivals.arrived(0, Version(0, number), 10.0 * number + seconds)
    choice = arrivals.choice()
    assert choice is not None
    assert choice.table[0].step_s == 2.0
