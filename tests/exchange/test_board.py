"""Tests of the board's twin; the folder has the same and more in tests/core/test_folder_board.py."""

from __future__ import annotations

import pytest
import torch

from dist_train.errors import TrainingError
from dist_train.exchange.board import KEPT, MemoryBoard


def test_the_newest_post_wins() -> None:
    board = MemoryBoard()
    assert board.newest(0) is None
    for version in (10, 20):
        board.post(0, version, {"w": torch.full((2,), float(version))})
    assert board.newest(0) == 20
    assert board.read(0, 20)["w"].tolist() == [20, 20]


def test_what_is_posted_is_a_copy() -> None:
    board, weights = MemoryBoard(), torch.ones(1)
    board.post(0, 1, {"w": weights})
    weights.zero_()
    assert board.read(0, 1)["w"].tolist() == [1]


def test_old_posts_are_taken_down() -> None:
    board = MemoryBoard()
    for version in range(KEPT + 1):
        board.post(2, version, {})
    with pytest.raises(TrainingError, match="replica 2 has no post 0"):
        board.read(2, 0)
