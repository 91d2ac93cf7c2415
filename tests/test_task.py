"""Tests of what a user brings: the abstract methods, the default metrics, and samples held as tensors."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import default_collate

from dist_train.task import METHODS, Rows, Task


def test_a_task_without_its_methods_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Task()  # type: ignore[abstract]
    assert Task.__abstractmethods__ == frozenset(METHODS)


def test_a_task_need_not_measure_anything_but_the_loss() -> None:
    assert Task.metrics(None, torch.zeros(1), None) == {}  # type: ignore[arg-type]


def test_rows_are_samples_of_all_columns() -> None:
    rows = Rows(torch.arange(12).reshape(4, 3), torch.tensor([0, 1, 2, 3]))
    assert len(rows) == 4
    x, y = rows[2]
    assert x.tolist() == [6, 7, 8]
    assert y.item() == 2


def test_a_batch_is_what_its_samples_collate_to() -> None:
    rows = Rows(torch.arange(12).reshape(4, 3), torch.tensor([0, 1, 2, 3]))
    wanted = [3, 0, 3]
    for column, collated in zip(rows.batch(wanted), default_collate([rows[i] for i in wanted]), strict=True):
        assert torch.equal(column, collated)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one length, not \[2, 3\]"):
        Rows(torch.zeros(2), torch.zeros(3))
