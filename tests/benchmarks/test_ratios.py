"""The harness' statistics: ratios within a round, and a median with an honest interval."""

import math
import random
from itertools import accumulate

import pytest

from benchmarks.ratios import differences, ratios, scaled, speeds, spread


def test_a_machine_that_slows_down_for_everybody_does_not_move_the_ratio():
    drift = [1.0, 2.0, 0.5, 1.7, 1.1]
    rounds = {"by_hand": [2.0 * d for d in drift], "other": [3.0 * d for d in drift]}
    assert ratios(rounds, "by_hand")["other"].median == pytest.approx(1.5)
    assert ratios(rounds, "by_hand")["other"].quartiles == pytest.approx((1.5, 1.5))


def test_whoever_takes_half_the_time_is_twice_as_fast():
    rounds = {"by_hand": [2.0, 4.0, 8.0], "other": [1.0, 2.0, 4.0]}
    assert speeds(rounds, "by_hand")["other"].median == 2.0


def test_the_baseline_is_one_to_itself_and_nothing_apart_from_itself():
    rounds = {"by_hand": [1.0, 3.0, 2.0]}
    assert ratios(rounds, "by_hand")["by_hand"].interval == (1.0, 1.0)
    assert differences(rounds, "by_hand")["by_hand"].interval == (0.0, 0.0)


def test_a_difference_is_taken_within_the_round():
    rounds = {"by_hand": [1.0, 10.0, 100.0], "other": [1.5, 10.5, 100.5]}
    assert differences(rounds, "by_hand")["other"].median == pytest.approx(0.5)


def test_contestants_with_unequal_numbers_of_rounds_are_not_compared():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        ratios({"by_hand": [1.0, 2.0], "other": [1.0]}, "by_hand")


def test_one_outlier_moves_neither_median_nor_quartiles():
    calm = spread([1, 2, 3, 4, 5])
    assert (calm.median, calm.quartiles) == (3, (2, 4))
    assert spread([1, 2, 3, 4, 500]).quartiles == (2, 4)


def test_a_single_number_is_its_own_spread():
    assert spread([7.0]).interval == (7.0, 7.0)


def test_too_few_rounds_for_95_percent_give_the_whole_range():
    assert spread([3, 1, 2, 5, 4]).interval == (1, 5)


@pytest.mark.parametrize("count", [6, 9, 20, 31])
def test_the_interval_is_the_narrowest_whose_chance_of_missing_the_median_is_5_percent(count):
    below = list(accumulate(math.comb(count, k) / 2**count for k in range(count + 1)))
    left_out = spread(range(count)).interval[0]
    assert 2 * below[left_out] <= 0.05 < 2 * below[left_out + 1]
    assert spread(range(count)).interval[1] == count - 1 - left_out


def test_the_interval_holds_the_true_median_about_as_often_as_it_says():
    chance = random.Random(0)
    samples = [spread([chance.gauss(1.0, 0.3) for _ in range(20)]).interval for _ in range(1000)]
    assert sum(low <= 1.0 <= high for low, high in samples) / 1000 == pytest.approx(0.96, abs=0.02)


def test_scaling_changes_the_unit_of_every_figure():
    seconds = spread([1.0, 2.0, 3.0])
    assert scaled(seconds, 1000) == spread([1000.0, 2000.0, 3000.0])
