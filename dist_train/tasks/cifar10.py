"""CIFAR-10 from its original binary files, augmented as in He et al. 2015 (arXiv 1512.03385), section 4.2."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from dist_train import models
from dist_train.config.schema import Model
from dist_train.task import Rows, Task
from dist_train.tasks.classification import Normalise, right_answers
from dist_train.tasks.folders import CIFAR_RECORD, CIFAR_TRAINING, CIFAR_VALIDATION, cifar_folder

# Of the training images, in red, green and blue.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

SIDE = 32
PADDING = 4


def read_records(folder: Path, names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read pixels (N, 3, 32, 32) and labels (N,)."""
    records = np.concatenate([np.fromfile(folder / name, dtype=np.uint8) for name in names])
    records = records.reshape(-1, CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE), records[:, 0].astype(np.int64)


class Augmented(Dataset[tuple[Tensor, int]]):
    """Each image padded by 4 pixels, cropped and, half of the time, mirrored, by Python's ``random``."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._images = images
        self._labels = labels
        # The paper pads with zeros after subtracting the mean; before that, they are the mean.
        side = SIDE + 2 * PADDING
        mean = np.round(255 * np.array(MEAN)).astype(np.uint8)
        self._border = np.tile(mean[:, None, None], (1, side, side))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        padded = self._border.copy()
        padded[:, PADDING : PADDING + SIDE, PADDING : PADDING + SIDE] = self._images[index]
        left, upper = random.randint(0, 2 * PADDING), random.randint(0, 2 * PADDING)
        image = padded[:, upper : upper + SIDE, left : left + SIDE]
        if random.random() < 0.5:
            image = image[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image)), int(self._labels[index])


class Cifar10(Task):
    """Name the class of a 32 x 32 image: 50,000 to train on and 10,000 to validate.

    Batches are pixels (B, 3, 32, 32) as uint8 and labels (B,); ``loss`` normalises the pixels.
    """

    def __init__(self, data_dir: Path, model: Model | None = None) -> None:
        self._folder = cifar_folder(data_dir)
        self._model = model or Model(name="cifar_resnet")
        self._normalise = Normalise(MEAN, STD)

    def model(self) -> nn.Module:
        facts = {"inputs": 3 * SIDE * SIDE, "outputs": 10, "channels": 3, "classes": 10}
        return models.build(self._model.name, self._model.options, **facts)

    def train_data(self) -> Augmented:
        return Augmented(*read_records(self._folder, CIFAR_TRAINING))

    def validation_data(self) -> Rows:
        images, labels = read_records(self._folder, CIFAR_VALIDATION)
        return Rows(torch.from_numpy(images), torch.from_numpy(labels))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        pixels, labels = batch
        predictions = model(self._normalise(pixels))
        return F.cross_entropy(predictions, labels), predictions

    def metrics(self, predictions: Tensor, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        return {"accuracy": right_answers(predictions, batch[1])}
