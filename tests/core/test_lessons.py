"""Tests of the agreement as it is reported: a mean over the updates that had teachers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dist_train.core.lessons import Lessons
from dist_train.exchange.collective import Alone


class Two(Alone):
    """A group in which the other worker has found 8 in shares of two updates."""

    workers = 2

    def gather(self, values: Tensor) -> Tensor:
        return torch.stack([values, torch.tensor([8.0, 2.0], dtype=values.dtype)])


def taught() -> Lessons:
    lessons = Lessons(torch.device("cpu"))
    for parts in ([(1.0, 1.0)], [], [(2.0, 0.5), (4.0, 0.5)]):
        for loss, share in parts:
            lessons.agreed(torch.tensor(loss), share)
    return lessons


def test_updates_without_teachers_do_not_count() -> None:
    assert taught().own() == pytest.approx((1.0 + 3.0) / 2)


def test_the_mean_is_over_all_workers_shares() -> None:
    assert taught().of_all(Two()) == pytest.approx((1.0 + 3.0 + 8.0) / 4)


def test_each_report_begins_anew() -> None:
    lessons = taught()
    lessons.own()
    assert (lessons.own(), lessons.of_all(Alone())) == (None, None)
