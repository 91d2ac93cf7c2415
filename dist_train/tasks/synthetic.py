"""Made-up classes for benchmarks: any shape, any size, nothing to download, and yet something to learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_train import models
from dist_train.config.schema import Model
from dist_train.task import Rows, Task
from dist_train.tasks.classification import right_answers

PROTOTYPES, TRAINING, VALIDATION = range(3)  # seeds: the data is the same in every run
VALIDATION_SHARE = 1 / 8


class Synthetic(Task):
    """Name the class whose prototype, noise added, the sample is: floats (B, *shape), labels (B,).

    ``noise`` is its standard deviation; the prototypes' values are drawn from N(0, 1). An eighth as many
    samples again are made to validate on.
    """

    def __init__(
        self,
        samples: int = 4096,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        noise: float = 1.0,
        model: Model | None = None,
    ) -> None:
        self._samples = samples
        self._shape = tuple(shape)
        self._classes = classes
        self._noise = noise
        self._model = model or Model(name="mlp")

    def model(self) -> nn.Module:
        facts = {"inputs": math.prod(self._shape), "outputs": self._classes}
        facts |= {"channels": self._shape[0], "classes": self._classes}
        return models.build(self._model.name, self._model.options, **facts)

    def train_data(self) -> Rows:
        return self._rows(self._samples, TRAINING)

    def validation_data(self) -> Rows:
        return self._rows(math.ceil(self._samples * VALIDATION_SHARE), VALIDATION)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        inputs, labels = batch
        predictions = model(inputs)
        return F.cross_entropy(predictions, labels), predictions

    def metrics(self, predictions: Tensor, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        return {"accuracy": right_answers(predictions, batch[1])}

    def _rows(self, size: int, seed: int) -> Rows:
        prototypes = torch.randn((self._classes, *self._shape), generator=_generator(PROTOTYPES))
        generator = _generator(seed)
        labels = torch.randint(self._classes, (size,), generator=generator)
        inputs = torch.randn((size, *self._shape), generator=generator)
        return Rows(inputs.mul_(self._noise).add_(prototypes[labels]), labels)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
