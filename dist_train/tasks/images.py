"""Classify images kept as a folder for each class, augmented as in Goyal et al. 2017, section 5.1."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from dist_train import models
from dist_train.config.schema import Model
from dist_train.errors import BadSample
from dist_train.task import Task
from dist_train.tasks.classification import Normalise, right_answers
from dist_train.tasks.folders import class_names, images_by_class

# Of ImageNet's training images, in red, green and blue.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10
CENTRE = 224 / 256

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels


def random_box(width: int, height: int) -> Box:
    """Choose a part of the image by area and aspect ratio (width over height), from Python's ``random``.

    Szegedy et al. 2014 (arXiv 1409.4842), section 6. An image too narrow for every attempt gives its
    largest centred part of an allowed aspect ratio.
    """
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(*AREA)
        aspect = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = random.randint(0, width - w), random.randint(0, height - h)
            return left, upper, left + w, upper + h
    aspect = min(max(width / height, ASPECT[0]), ASPECT[1])
    return _centred(width, height, min(width, height * aspect), min(height, width / aspect))


def centre_box(width: int, height: int) -> Box:
    """The central square: what remains when the shorter side becomes 256 and the centre of 224 is cut out."""
    side = min(width, height) * CENTRE
    return _centred(width, height, side, side)


def _centred(width: int, height: int, w: float, h: float) -> Box:
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def read_part(path: str, size: int, choose: Callable[[int, int], Box]) -> Image.Image:
    """Decode the part of the image that ``choose(width, height)`` returns, as RGB of ``size`` by ``size``.

    Raises BadSample for a file that cannot be read or decoded.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            left, upper, right, lower = choose(width, height)
            # A JPEG can be decoded at a fraction of its size, as long as the part keeps enough pixels.
            image.draft(
                "RGB", (math.ceil(size * width / (right - left)), math.ceil(size * height / (lower - upper)))
            )
            x, y = image.width / width, image.height / height
            box = (left * x, upper * y, min(right * x, image.width), min(lower * y, image.height))
            return image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise BadSample(path, f"{type(error).__name__}: {error}") from error


class ImageTree(Dataset[tuple[Tensor, int]]):
    """The images below ``folder``/class/: uint8 pixels (3, size, size) and the class's number."""

    def __init__(self, folder: Path, size: int, augment: bool) -> None:
        self._folder = os.fspath(folder)
        self._size = size
        self._augment = augment
        found = images_by_class(folder)
        # One array of bytes: a million strings would be copied into every loading process.
        self._names = np.array(
            [os.fsencode(os.path.join(label, name)) for label, names in found for name in names]
        )
        self._labels = np.repeat(np.arange(len(found)), [len(names) for _, names in found])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = os.path.join(self._folder, os.fsdecode(self._names[index]))
        part = read_part(path, self._size, random_box if self._augment else centre_box)
        if self._augment and random.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous()
        return pixels, int(self._labels[index])


class Images(Task):
    """Name the class of an image in ``data_dir``/train/class/ and ``data_dir``/val/class/.

    Batches are pixels (B, 3, size, size) as uint8 and labels (B,); ``loss`` normalises the pixels.
    """

    def __init__(self, data_dir: Path, size: int = 224, model: Model | None = None) -> None:
        self._data_dir = data_dir
        self._size = size
        self._model = model or Model(name="resnet50")
        self._normalise = Normalise(MEAN, STD)

    def model(self) -> nn.Module:
        classes = len(self._classes)
        facts = {"inputs": 3 * self._size**2, "outputs": classes, "channels": 3, "classes": classes}
        return models.build(self._model.name, self._model.options, **facts)

    def train_data(self) -> ImageTree:
        return ImageTree(self._data_dir / "train", self._size, augment=True)

    def validation_data(self) -> ImageTree:
        return ImageTree(self._data_dir / "val", self._size, augment=False)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        pixels, labels = batch
        predictions = model(self._normalise(pixels))
        return F.cross_entropy(predictions, labels), predictions

    def metrics(self, predictions: Tensor, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        labels = batch[1]
        return {"accuracy": right_answers(predictions, labels), "top5": right_answers(predictions, labels, 5)}

    @cached_property
    def _classes(self) -> list[str]:
        return class_names(self._data_dir / "train")
