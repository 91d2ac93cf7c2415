"""Tests of who stands with whom."""

from __future__ import annotations

import pytest

from dist_train.rules.topology import groups


def test_groups_are_consecutive_ranks() -> None:
    assert groups(6, 2) == [[0, 1], [2, 3], [4, 5]]
    assert groups(6, 3) == [[0, 1, 2], [3, 4, 5]]


def test_one_group_holds_all_and_groups_of_one_hold_one() -> None:
    assert groups(3, 3) == [[0, 1, 2]]
    assert groups(3, 1) == [[0], [1], [2]]


def test_workers_that_would_be_left_over_are_refused() -> None:
    with pytest.raises(ValueError, match="5 workers cannot be cut into groups of 2"):
        groups(5, 2)
