from __future__ import annotations

import math

import pytest
import torch

from dist_train.exchange.finite import BLOCK, copy_finite, is_finite


class TestFinite:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", [0, 500, 999])
    def test_one_element_that_is_no_number_is_found(self, bad, place):
        vector = torch.ones(1000)
        vector[place] = bad
        assert not is_finite(vector)

    @pytest.mark.parametrize("largest", [0.0, 1e-45, 1e19, torch.finfo(torch.float32).max])
    def test_large_and_small_numbers_are_finite(self, largest):
        assert is_finite(torch.full((1000,), largest))
        assert is_finite(torch.full((1000,), -largest))

    def test_opposite_infinities_do_not_cancel(self):
        assert not is_finite(torch.tensor([math.inf, -math.inf]))

    def test_nothing_is_finite(self):
        assert is_finite(torch.empty(0))


class TestCopy:
    @pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
    def test_it_copies_every_element(self, size):
        sources = [torch.arange(size, dtype=torch.float32), torch.tensor([5.0])]
        targets = [torch.full((size,), 7.0), torch.zeros(1)]
        assert copy_finite(targets, sources)
        assert all(torch.equal(target, source) for target, source in zip(targets, sources, strict=True))

    def test_columns_that_lie_apart_arrive_in_row_major_order(self):
        source = torch.arange(12.0).view(3, 4).t()
        target = torch.zeros(4, 3)
        assert copy_finite([target], [source])
        assert torch.equal(target, source)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 2])
    def test_one_element_that_is_no_number_is_found_and_copied(self, bad, place):
        source = torch.ones(2 * BLOCK + 3)
        source[place] = bad
        target = torch.zeros_like(source)
        assert not copy_finite([torch.zeros(1), target], [torch.ones(1), source])
        assert target.equal(source) or math.isnan(float(target[place]))

    def test_one_of_a_transposed_matrix_is_found(self):
        source = torch.ones(4, 3).t()
        source[1, 2] = math.nan
        assert not copy_finite([torch.zeros(3, 4)], [source])

    def test_squares_that_overflow_are_no_infinity(self):
        source = torch.full((1000,), torch.finfo(torch.float32).max)
        assert copy_finite([torch.zeros(1000)], [source])

    def test_nothing_is_finite(self):
        assert copy_finite([], [])
