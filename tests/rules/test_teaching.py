"""Tests of who teaches whom, when, and on which data."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.rules.teaching import (
    bootstrap_rows,
    companions_of,
    looks_every,
    passes,
    posts,
    replica_seed,
    rows_of,
    teachers_of,
    weight_at,
)


class TestTeachers:
    def test_all_others_teach(self) -> None:
        assert teachers_of(1, 4, "all") == (0, 2, 3)

    def test_in_a_ring_the_next_one_teaches(self) -> None:
        assert [teachers_of(each, 3, "ring") for each in range(3)] == [(1,), (2,), (0,)]

    def test_pairs_teach_each_other(self) -> None:
        assert [teachers_of(each, 4, "pairs") for each in range(4)] == [(1,), (0,), (3,), (2,)]

    def test_all_keep_step_that_learn_from_one_another_by_whatever_detour(self) -> None:
        found = [companions_of(1, 4, topology) for topology in ("all", "ring", "pairs")]
        assert found == [(0, 1, 2, 3), (0, 1, 2, 3), (0, 1)]

    def test_an_odd_number_cannot_be_paired(self) -> None:
        with pytest.raises(ValueError, match="3 replicas"):
            teachers_of(0, 3, "pairs")


class TestWeight:
    def test_burn_in_is_on_the_task_alone(self) -> None:
        assert [weight_at(updates, 0.5, 2, 0) for updates in range(4)] == [0, 0, 0.5, 0.5]

    def test_after_it_the_weight_rises_in_a_line(self) -> None:
        assert [weight_at(updates, 1.0, 1, 3) for updates in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


class TestTimes:
    def test_a_replica_posts_once_an_interval(self) -> None:
        assert [after for after in range(1, 101) if posts(after - 1, after, 50, 0, -1)] == [50, 100]

    def test_versions_that_nobody_saw_hide_no_post(self) -> None:
        seen = [0, 3, 8, 9, 14, 15, 27]
        assert [after for before, after in pairwise(seen) if passes(before, after, 5)] == [8, 14, 15, 27]

    def test_after_a_return_to_an_earlier_version_nothing_is_due(self) -> None:
        assert not passes(50, 40, 5)

    def test_a_later_group_steps_in_once_a_post_of_the_earlier_ones_is_missing(self) -> None:
        def second(newest: int) -> list[int]:
            return [after for after in range(1, 51) if posts(after - 1, after, 10, 1, newest)]

        assert second(newest=10) == [30, 40, 50]
        assert second(newest=40) == []

    @pytest.mark.parametrize(("interval", "every"), [(50, 6), (8, 1), (1, 1)])
    def test_a_replica_looks_several_times_an_interval(self, interval: int, every: int) -> None:
        assert looks_every(interval) == every


class TestData:
    @given(st.integers(1, 7), st.integers(0, 200), st.integers(0, 2**63 - 1))
    def test_the_parts_are_near_equal_and_hold_every_row_once(
        self, replicas: int, size: int, seed: int
    ) -> None:
        parts = [rows_of(each, replicas, size, seed) for each in range(replicas)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(size))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_a_part_is_no_block_of_a_sorted_file(self) -> None:
        own = rows_of(0, 2, 1000, seed=1)
        # Of 500 drawn from 1000, between 200 and 300 are of the first half, but for one time in 10^9.
        assert 200 < int((own < 500).sum()) < 300

    def test_replica_0_trains_as_the_run_would_alone(self) -> None:
        assert [replica_seed(7, each) for each in range(3)] == [7, 1_000_007, 2_000_007]


class TestBootstrap:
    @given(st.integers(0, 7), st.integers(1, 200), st.integers(0, 2**63 - 1))
    def test_a_sample_has_the_size_of_the_set_and_rows_of_it_alone(
        self, replica: int, size: int, seed: int
    ) -> None:
        rows = bootstrap_rows(replica, size, seed)
        assert rows.shape == (size,)
        assert 0 <= rows.min() <= rows.max() < size
        assert rows.tolist() == sorted(bootstrap_rows(replica, size, seed))

    def test_a_share_of_one_in_e_is_left_out(self) -> None:
        # Of n = 100,000 rows n / e; its standard deviation is sqrt(n (1/e - 2/e^2)), some 98.
        left_out = [100_000 - len(np.unique(bootstrap_rows(each, 100_000, seed=3))) for each in range(4)]
        assert all(abs(each - 36_788) < 5 * 98 for each in left_out)

    def test_every_row_is_as_likely(self) -> None:
        # Each of 4 quarters of 40,000 draws has 10,000 with a standard deviation of sqrt(40,000 * 3/16), 87.
        counts = np.bincount(bootstrap_rows(1, 40_000, seed=5) // 10_000, minlength=4)
        assert np.abs(counts - 10_000).max() < 5 * 87

    def test_each_replica_and_each_run_has_a_sample_of_its_own(self) -> None:
        drawn = [bootstrap_rows(replica, 50, seed).tolist() for replica in range(3) for seed in range(3)]
        assert len({tuple(rows) for rows in drawn}) == 9
