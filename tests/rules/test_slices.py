"""Slices cover the vector, are near-equal, and are cut where it is allowed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.rules.slices import slices


def bounds(found: list[range]) -> list[tuple[int, int]]:
    return [(part.start, part.stop) for part in found]


class TestCutsAnywhere:
    @given(st.integers(1, 10**9), st.integers(1, 64))
    def test_slices_lie_end_to_end_cover_everything_and_start_at_multiples_of_16(self, grains, shards):
        found = slices(16 * max(grains, shards), shards)
        assert [part.start for part in found] == [0, *(part.stop for part in found[:-1])]
        assert found[-1].stop == 16 * max(grains, shards)
        assert all(part.start % 16 == 0 and part.step == 1 for part in found)

    @given(st.integers(1, 10**9), st.integers(1, 64))
    def test_no_slice_is_empty_and_none_is_more_than_a_grain_off_the_mean(self, grains, shards):
        size = 16 * max(grains, shards)
        lengths = [len(part) for part in slices(size, shards)]
        assert min(lengths) > 0
        assert all(abs(length * shards - size) <= 16 * shards for length in lengths)

    def test_one_shard_has_it_all_whatever_the_size(self):
        assert slices(5, 1) == [range(5)]

    def test_thirds_of_ten_grains_are_rounded_to_the_nearest(self):
        # 160 / 3 = 53.3 lies nearer to 48 than to 64, and 106.7 nearer to 112 than to 96.
        assert bounds(slices(160, 3)) == [(0, 48), (48, 112), (112, 160)]

    def test_of_two_equally_near_places_the_lower_is_taken(self):
        assert bounds(slices(48, 2)) == [(0, 16), (16, 48)]

    @pytest.mark.parametrize("shards", [0, -1, 4])
    def test_too_many_or_no_shards_are_refused_with_both_numbers(self, shards):
        with pytest.raises(ValueError, match=f"48 elements cannot be cut into {shards} slices: 1 to 3"):
            slices(48, shards)


class TestGivenCuts:
    def test_each_cut_is_the_nearest_to_the_even_one(self):
        assert bounds(slices(1000, 3, [0, 100, 300, 400, 640, 700])) == [(0, 300), (300, 640), (640, 1000)]

    def test_a_large_parameter_is_not_cut(self):
        assert bounds(slices(1000, 2, [0, 16, 900])) == [(0, 900), (900, 1000)]

    def test_every_later_cut_is_left_a_place(self):
        # 500 is nearest to both 333 and 667.
        assert bounds(slices(1000, 3, [0, 16, 500])) == [(0, 16), (16, 500), (500, 1000)]
        assert bounds(slices(1000, 3, [0, 500, 900])) == [(0, 500), (500, 900), (900, 1000)]

    def test_empty_parameters_and_the_ends_are_no_places(self):
        message = re.escape("64 elements cannot be cut into 3 slices: 1 to 2 are possible")
        with pytest.raises(ValueError, match=message):
            slices(64, 3, [0, 32, 32, 64])

    @given(st.sets(st.integers(1, 9999), min_size=1), st.data())
    def test_only_given_places_are_used_each_once(self, places, data):
        shards = data.draw(st.integers(1, len(places) + 1))
        found = slices(10_000, shards, sorted(places))
        assert len(found) == shards
        assert {part.start for part in found} <= places | {0}
        assert [part.stop for part in found] == [*(part.start for part in found[1:]), 10_000]
        assert all(found)
