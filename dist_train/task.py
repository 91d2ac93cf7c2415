"""What a user brings: a model, the data, and how the one is judged on the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

METHODS = ("model", "train_data", "validation_data", "loss")


class Task(ABC):
    """One thing to learn. Subclass it, or write any class with the same methods.

    A batch is whatever the dataset's samples collate to (tensors, or tuples, lists and dicts of
    tensors) and reaches ``loss`` and ``metrics`` already on the worker's device.
    """

    @abstractmethod
    def model(self) -> nn.Module:
        """Make the model, freshly initialised; the caller has set the seed."""

    @abstractmethod
    def train_data(self) -> Dataset[Any]:
        """Make the training set: a map-style dataset with a length."""

    @abstractmethod
    def validation_data(self) -> Dataset[Any]:
        """Make the validation set: a map-style dataset with a length."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the batch's samples (a scalar) and the predictions it came from.

        ``model`` is the model to call: it may be wrapped for gradient exchange, so call it and do not
        reach into it.
        """

    def metrics(self, predictions: Tensor, batch: Any) -> Mapping[str, Tensor]:
        """Return further measures by name, each as one value per sample or as a mean over the batch."""
        del predictions, batch
        return {}

    def scores(self, predictions: Tensor) -> Tensor:
        """Return what replicas are to agree on: scores of shape (..., classes), before any softmax."""
        return predictions


def scores_of(task: Task, predictions: Tensor) -> Tensor:
    """Return a task's ``scores``; one that does not say which has its predictions taken for them."""
    scores = getattr(task, "scores", None)
    return scores(predictions) if callable(scores) else predictions


class Rows(Dataset[Any]):
    """Samples held as tensors of shape (size, ...), fetched a whole batch at a time.

    ``Rows(x, y)[i]`` is ``(x[i], y[i])``; a batch is ``(x[rows], y[rows])``, without a copy per sample.
    """

    def __init__(self, *columns: Tensor) -> None:
        sizes = {len(column) for column in columns}
        if len(sizes) != 1:
            raise ValueError(f"the columns must have one length, not {sorted(sizes)}")
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(column[index] for column in self.columns)

    def batch(self, indices: list[int]) -> tuple[Tensor, ...]:
        """Fetch the samples at ``indices`` as one collated batch."""
        rows = torch.as_tensor(indices)
        return tuple(column[rows] for column in self.columns)
