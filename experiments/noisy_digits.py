"""Digits of which many are mislabelled: a task whose labels do not say everything."""

from __future__ import annotations

import torch

from dist_train.task import Rows
from dist_train.tasks.digits import Digits

WRONG = 0.4


class NoisyDigits(Digits):
    """The digits, ``WRONG`` of the training labels replaced by any of the ten; validation is as it was."""

    def train_data(self) -> Rows:
        images, labels = super().train_data().columns
        draw = torch.Generator().manual_seed(0)
        wrong = torch.rand(len(labels), generator=draw) < WRONG
        return Rows(images, torch.where(wrong, torch.randint(10, labels.shape, generator=draw), labels))
