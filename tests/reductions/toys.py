"""Small things to learn, each with the property that a statement is about."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from dist_train.errors import BadSample
from dist_train.task import Task

FEATURES, CLASSES = 6, 3


def examples(size: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return inputs (size, FEATURES) and classes (size,)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, FEATURES, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


class Points(Dataset[Any]):
    """Samples (input, class); ``ledger`` is a file to which the index of every sample fetched is added."""

    def __init__(
        self,
        size: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        ledger: str | None = None,
        noisy: bool = False,
        bad: tuple[int, ...] = (),
    ) -> None:
        self.inputs, self.classes = examples(size, seed, dtype)
        self.ledger = ledger
        self.noisy = noisy
        self.bad = bad

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self.bad:
            raise BadSample(f"point {index}", "is not readable")
        if self.ledger is not None:
            with open(self.ledger, "a") as file:
                file.write(f"{index}\n")
        shift = random.random() + np.random.rand() + float(torch.rand(())) if self.noisy else 0.0
        return self.inputs[index] + shift, self.classes[index]


class FrozenBatchNorm(nn.BatchNorm1d):
    """Batch normalisation that stays in evaluation mode."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        super().train(False)
        return self


class Centred(nn.Module):
    """Subtracts a running mean, also in training: a buffer that gradients depend on."""

    mean: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(inputs.detach().mean(0), 0.1)
        return inputs - self.mean


class Layers(nn.Sequential):
    """A model with a forward of its own, as users write them: torch does not compile what is torch's."""

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self:
            inputs = layer(inputs)
        return inputs


class Plain(Task):
    """A two-layer network in double precision; ``norm`` comes between its layers."""

    dtype = torch.float64

    def __init__(
        self,
        size: int = 50,
        validation: int = 17,
        norm: str = "none",
        dropout: float = 0.0,
        ledger: str | None = None,
        noisy: bool = False,
        bad: tuple[int, ...] | list[int] = (),
    ) -> None:
        self.norm, self.dropout = norm, dropout
        self.train_options = {"ledger": ledger, "noisy": noisy, "bad": tuple(bad)}
        self.size, self.validation = size, validation

    def model(self) -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(FEATURES, 8)]
        if self.norm == "batch":
            layers.append(nn.BatchNorm1d(8))
        elif self.norm == "centred":
            layers.append(Centred(8))
        elif self.norm == "channels":  # two values per channel and sample
            layers += [nn.Unflatten(1, (4, 2)), nn.BatchNorm1d(4), nn.Flatten()]
        elif self.norm == "frozen":
            frozen = FrozenBatchNorm(8)
            nn.init.uniform_(frozen.running_mean)
            nn.init.uniform_(frozen.running_var, 0.5, 2.0)
            layers.append(frozen)
        layers.append(nn.Tanh())
        if self.dropout:
            layers.append(nn.Dropout(self.dropout))
        return Layers(*layers, nn.Linear(8, CLASSES)).to(self.dtype)

    def train_data(self) -> Points:
        return Points(self.size, 1, self.dtype, **self.train_options)

    def validation_data(self) -> Points:
        return Points(self.validation, 2, self.dtype)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        inputs, classes = batch
        predictions = model(inputs)
        return F.cross_entropy(predictions, classes), predictions

    def metrics(self, predictions: Tensor, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        right = (predictions.argmax(1) == batch[1]).double()
        return {"accuracy": right, "mean_accuracy": right.mean()}


class Noisy(Plain):
    """Everything that can go wrong on the way back: dropout, batch norm, augmentation by all generators."""

    dtype = torch.float32

    def __init__(self, size: int = 50, ledger: str | None = None) -> None:
        super().__init__(size, norm="batch", dropout=0.3, ledger=ledger, noisy=True)


class Exploding(Plain):
    """Its loss is no number on the worker whose batch holds sample 7."""

    def train_data(self) -> Points:
        points = super().train_data()
        points.inputs[7] = float("nan")
        return points


class Poisoned(Plain):
    """To each worker sample 7 is no number the first time, nor are the running statistics after it."""

    dtype = torch.float32

    class Once(Points):
        was_given = False

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            inputs, label = super().__getitem__(index)
            if index == 7 and not self.was_given:
                self.was_given = True
                return torch.full_like(inputs, float("nan")), label
            return inputs, label

    def __init__(self, size: int = 48, norm: str = "batch") -> None:
        super().__init__(size, norm=norm)

    def train_data(self) -> Points:
        return self.Once(self.size, 1, self.dtype)


class TwoHeads(nn.Module):
    """The second of its heads is used only for batches whose mean is above zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        first: Tensor = self.first(inputs)
        return first + self.second(inputs) if inputs.mean() > 0 else first


class Choosing(Plain):
    """Which of its parameters have a gradient depends on the batch."""

    dtype = torch.float32

    def model(self) -> nn.Module:
        return TwoHeads()


class Dying(Plain):
    """Its dataset ends the process that asks for sample 7."""

    class Deadly(Points):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            if index == 7:
                os._exit(3)
            return super().__getitem__(index)

    def train_data(self) -> Points:
        return self.Deadly(self.size, 1, self.dtype)


class Drawn(Plain):
    """Holds out a random part of its data, drawn by whatever generator is at hand."""

    def train_data(self) -> Points:
        points = super().train_data()
        points.inputs = points.inputs[torch.randperm(self.size)]
        random.random()
        np.random.rand()
        return points
