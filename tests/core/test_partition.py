"""Tests of a replica's own part of a dataset."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from dist_train import Rows
from dist_train.core.partition import own_part
from dist_train.errors import ConfigError
from dist_train.rules.teaching import rows_of


def test_sample_i_is_the_ith_row_of_the_part() -> None:
    rows = rows_of(1, 3, 20, seed=4).tolist()
    part = own_part(TensorDataset(torch.arange(20)), 1, 3, seed=4)
    assert len(part) == len(rows)
    assert [int(part[number][0]) for number in range(len(part))] == rows


def test_what_is_fetched_a_batch_at_a_time_still_is() -> None:
    rows = rows_of(0, 2, 20, seed=4).tolist()
    part = own_part(Rows(torch.arange(20)), 0, 2, seed=4)
    assert part.batch([3, 0])[0].tolist() == [rows[3], rows[0]]


def test_too_few_samples_for_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="the training set has 2 samples, too few for 3 disjoint parts"):
        own_part(Rows(torch.arange(2)), 0, 3, seed=0)
