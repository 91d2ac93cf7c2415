"""Tests of the histogram of staleness."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.rules.staleness import Staleness, over_windows

values = st.lists(st.integers(min_value=0, max_value=40), max_size=120)


def counted(*staleness: int) -> Staleness:
    histogram = Staleness()
    for value in staleness:
        histogram.add(value)
    return histogram


class TestFigures:
    def test_of_a_few_gradients(self) -> None:
        histogram = counted(0, 0, 1, 3, 16)
        assert histogram.gradients == 5
        assert histogram.mean == 4.0
        assert (histogram.p50, histogram.p99, histogram.max) == (1, 16, 16)
        assert histogram.counts == {0: 2, 1: 1, 3: 1, 16: 1}

    def test_are_zero_where_nothing_was_counted(self) -> None:
        assert Staleness().summary() == {"mean": 0.0, "p50": 0, "p99": 0, "max": 0}

    def test_a_gradient_in_a_hundred_is_just_beyond_the_99th_percentile(self) -> None:
        assert Staleness({2: 99, 50: 1}).p99 == 2
        assert Staleness({2: 98, 50: 2}).p99 == 50

    def test_of_an_even_number_the_median_is_the_lower_of_the_middle_two(self) -> None:
        assert counted(1, 2, 3, 4).p50 == 2

    @pytest.mark.parametrize("percent", [1, 7, 57, 99, 100])
    def test_a_percentile_is_exact_for_a_hundred_different_values(self, percent: int) -> None:
        # In binary floating point, 0.07 * 100 is above 7 and 0.57 * 100 below 57.
        assert counted(*range(1, 101)).percentile(percent) == percent

    @given(values, st.integers(min_value=1, max_value=100))
    def test_a_percentile_is_the_nearest_rank_of_the_sorted_values(
        self, staleness: list[int], percent: int
    ) -> None:
        rank = max(1, math.ceil(percent * len(staleness) / 100 - 1e-9))
        expected = sorted(staleness)[rank - 1] if staleness else 0
        assert counted(*staleness).percentile(percent) == expected


class TestRefusals:
    @pytest.mark.parametrize(("value", "times"), [(-1, 1), (0, -1)])
    def test_nothing_negative_is_counted(self, value: int, times: int) -> None:
        with pytest.raises(ValueError, match="negative"):
            Staleness().add(value, times)

    @pytest.mark.parametrize("percent", [0, 101])
    def test_a_percentile_outside_1_to_100_is_refused(self, percent: int) -> None:
        with pytest.raises(ValueError, match="above 0 and at most 100"):
            counted(1).percentile(percent)

    def test_a_later_histogram_is_not_an_earlier_one(self) -> None:
        with pytest.raises(ValueError, match="holds gradients"):
            counted(1).since(counted(1, 1))


class TestParts:
    @given(values, values)
    def test_a_window_and_what_was_before_it_make_the_whole(
        self, before: list[int], after: list[int]
    ) -> None:
        whole = counted(*before, *after)
        assert whole.since(counted(*before)) == counted(*after)
        assert counted(*before).merged(counted(*after)) == whole

    def test_a_copy_stays_as_it_was(self) -> None:
        histogram = counted(1)
        copy = histogram.copy()
        histogram.add(2)
        assert copy == counted(1)

    @given(values)
    def test_survives_json(self, staleness: list[int]) -> None:
        histogram = counted(*staleness)
        assert Staleness.from_json(json.loads(json.dumps(histogram.to_json()))) == histogram

    def test_a_histogram_is_written_in_rising_order(self) -> None:
        assert list(counted(10, 2, 2).to_json().items()) == [("2", 2), ("10", 1)]


class TestWindows:
    ONE, TWO, THREE = Staleness({0: 1}), Staleness({1: 2}), Staleness({2: 3})

    def test_windows_that_follow_one_another_add_up(self):
        assert over_windows([(0, 10, self.ONE), (10, 20, self.TWO)]) == Staleness({0: 1, 1: 2})

    def test_what_a_resumed_run_makes_again_counts_as_the_last_time(self):
        windows = [(0, 10, self.ONE), (10, 20, self.TWO), (10, 18, self.THREE)]
        assert over_windows(windows) == Staleness({0: 1, 2: 3})

    def test_a_window_over_all_of_it_holds_the_others(self):
        assert over_windows([(0, 10, self.ONE), (10, 20, self.TWO), (0, 20, self.THREE)]) == self.THREE
