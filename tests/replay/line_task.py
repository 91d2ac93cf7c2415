"""A small task for real runs: learns a line, with dropout and batch norm, so that all randomness matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_train import Rows, Task


class Line(Task):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 1))

    def train_data(self) -> Rows:
        return points(64, 1)

    def validation_data(self) -> Rows:
        return points(17, 2)

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        predictions = model(inputs)
        return F.mse_loss(predictions, targets), predictions


def points(size: int, seed: int) -> Rows:
    inputs = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
    return Rows(inputs, inputs.sum(1, keepdim=True))
