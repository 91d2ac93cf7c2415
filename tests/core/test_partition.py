"""Tests of what a replica trains on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dist_train.core.partition import Part, bootstrap_sample, own_part
from dist_train.errors import ConfigError
from dist_train.task import Rows

WHOLE = Rows(torch.arange(20), torch.arange(20) * 10)


def test_a_part_has_its_rows_by_sample_and_by_batch() -> None:
    part = Part(WHOLE, np.array([3, 3, 7]))
    assert len(part) == 3
    assert [tuple(map(int, part[each])) for each in range(3)] == [(3, 30), (3, 30), (7, 70)]
    assert [column.tolist() for column in part.batch([2, 0])] == [[7, 3], [70, 30]]


def test_parts_of_replicas_hold_every_sample_once() -> None:
    parts = [own_part(WHOLE, replica, 3, seed=1) for replica in range(3)]
    assert sorted(int(part[each][0]) for part in parts for each in range(len(part))) == list(range(20))


def test_too_few_samples_for_the_parts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"codistill.data: the training set has 20 samples, too few for 21"):
        own_part(WHOLE, 0, 21, seed=1)


def test_a_bootstrap_sample_is_as_large_as_the_set_and_has_some_twice() -> None:
    sample = bootstrap_sample(WHOLE, 1, seed=1)
    found = [int(sample[each][0]) for each in range(len(sample))]
    assert len(found) == 20
    assert 1 < len(set(found)) < 20
