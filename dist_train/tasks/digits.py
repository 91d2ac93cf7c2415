"""Handwritten digits, 8 x 8 pixels: the 1,797 that come with scikit-learn."""

from __future__ import annotations

import gzip
import importlib.util
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_train import models
from dist_train.config.schema import Model
from dist_train.task import Rows, Task
from dist_train.tasks.classification import right_answers

SPLIT_SEED = 0  # every run validates on the same digits, whatever its seed
WHITE = 16.0


def validation_rows(labels: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Mark ``share`` of the rows, rounded up, with every class in its proportion to within one row."""
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    count = math.ceil(len(labels) * share)
    held_out = np.zeros(len(labels), dtype=np.bool_)
    held_out[by_class[np.linspace(0, len(labels), count, endpoint=False).astype(np.int64)]] = True
    return held_out


class Digits(Task):
    """Name the digit: pixels (B, 1, 8, 8) from 0 to 1, labels (B,); 1,437 to train on, 360 to validate."""

    def __init__(self, validation_share: float = 0.2, model: Model | None = None) -> None:
        self._share = validation_share
        self._model = model or Model(name="mlp")

    def model(self) -> nn.Module:
        facts = {"inputs": 64, "outputs": 10, "channels": 1, "classes": 10}
        return models.build(self._model.name, self._model.options, **facts)

    def train_data(self) -> Rows:
        return self._rows(validation=False)

    def validation_data(self) -> Rows:
        return self._rows(validation=True)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        predictions = model(images)
        return F.cross_entropy(predictions, labels), predictions

    def metrics(self, predictions: Tensor, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        return {"accuracy": right_answers(predictions, batch[1])}

    def _rows(self, validation: bool) -> Rows:
        images, labels = self._table[:, :64], self._table[:, 64].astype(np.int64)
        chosen = validation_rows(labels, self._share) == validation
        pixels = torch.from_numpy(images[chosen]).float().view(-1, 1, 8, 8) / WHITE
        return Rows(pixels, torch.from_numpy(labels[chosen]))

    @cached_property
    def _table(self) -> NDArray[np.float64]:
        return read_digits()


def read_digits() -> NDArray[np.float64]:
    """Read 64 pixels between 0 and 16 and the label, for each digit: (1797, 65)."""
    spec: Any = importlib.util.find_spec("sklearn")
    # scikit-learn's own file, read without it: importing it takes seconds.
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        with gzip.open(file, "rt") as lines:
            return np.loadtxt(lines, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
