"""Predictions of waiting times, against closed forms."""

import math
from statistics import NormalDist

import pytest

from benchmarks.arrivals import at_least, expected_wait, lognormal, simulated_wait


def exponential(t):
    return 1 - math.exp(-t)


@pytest.mark.parametrize(("quorum", "workers"), [(1, 1), (1, 8), (8, 8), (8, 10), (50, 54)])
def test_the_nth_of_exponential_arrivals_takes_a_sum_of_reciprocals(quorum, workers):
    exact = sum(1 / (workers - k) for k in range(quorum))
    assert expected_wait(quorum, workers, exponential, longest=40) == pytest.approx(exact, rel=1e-4)


def test_one_lognormal_arrival_takes_the_mean_of_the_distribution():
    within = lognormal(median=0.2, sigma=0.5)
    assert expected_wait(1, 1, within, longest=10) == pytest.approx(0.2 * math.exp(0.125), rel=1e-4)


def test_the_later_of_two_lognormal_arrivals_takes_their_known_maximum():
    # E max = 2 * mean * P(Z < sigma / sqrt 2), by symmetry of the pair.
    exact = 2 * math.exp(0.125) * NormalDist().cdf(0.5 / math.sqrt(2))
    assert expected_wait(2, 2, lognormal(1, 0.5), longest=40) == pytest.approx(exact, rel=1e-4)


def test_nothing_arrives_before_it_began():
    assert lognormal(1, 0.5)(0.0) == 0.0
    assert lognormal(3, 0.5)(3.0) == pytest.approx(0.5)


def test_at_least_none_is_certain_and_at_least_all_takes_everybody():
    assert at_least(0, 5, 0.3) == pytest.approx(1.0)
    assert at_least(5, 5, 0.3) == pytest.approx(0.3**5)


def test_without_backups_the_simulation_is_the_order_statistic():
    exact = expected_wait(4, 4, lognormal(1, 0.5), longest=40)
    assert simulated_wait(4, 4, 1, 0.5) == pytest.approx(exact, rel=0.02)


def test_a_worker_that_comes_late_makes_backups_worth_less_but_not_nothing():
    alone = expected_wait(8, 8, lognormal(1, 0.5), longest=40)
    ideal = expected_wait(8, 10, lognormal(1, 0.5), longest=40)
    assert ideal < simulated_wait(8, 10, 1, 0.5) < alone


def test_without_chance_every_update_takes_the_same():
    assert simulated_wait(3, 4, 2.0, 0.0, updates=50) == pytest.approx(2.0)
