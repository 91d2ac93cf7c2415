"""Predict the next byte of local text files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_train import models
from dist_train.config.schema import Model
from dist_train.task import Rows, Task
from dist_train.tasks import corpus


class Text(Task):
    """A byte-level language model; a sample is ``context`` bytes and the one that follows, as uint8.

    Samples neither overlap (but for the one byte) nor mix training and validation text: whole files are
    held out (see corpus.split). Without ``paths`` the text is the source of the Python standard library.
    """

    def __init__(
        self,
        paths: Sequence[Path] | None = None,
        pattern: str = "*.py",
        context: int = 128,
        validation_share: float = 0.05,
        max_bytes: int | None = None,
        model: Model | None = None,
    ) -> None:
        self._paths = paths
        self._pattern = pattern
        self._context = context
        self._share = validation_share
        self._max_bytes = max_bytes
        self._model = model or Model(name="gpt")

    def model(self) -> nn.Module:
        return models.build(self._model.name, self._model.options, context=self._context, vocabulary=256)

    def train_data(self) -> Rows:
        return self._windows(self._split[0])

    def validation_data(self) -> Rows:
        return self._windows(self._split[1])

    def loss(self, model: nn.Module, batch: tuple[Tensor]) -> tuple[Tensor, Tensor]:
        (text,) = batch
        predictions = model(text[:, :-1])
        return F.cross_entropy(predictions.flatten(0, 1), text[:, 1:].flatten().long()), predictions

    def metrics(self, predictions: Tensor, batch: tuple[Tensor]) -> Mapping[str, Tensor]:
        (text,) = batch
        nats = F.cross_entropy(predictions.transpose(1, 2), text[:, 1:].long(), reduction="none")
        return {"bits_per_byte": nats.mean(dim=1) / math.log(2)}

    @cached_property
    def _split(self) -> tuple[list[corpus.Piece], list[corpus.Piece]]:
        pieces = corpus.find(self._paths, self._pattern)
        if self._max_bytes is not None:
            pieces, _ = corpus.cut(pieces, self._max_bytes)
        return corpus.split(pieces, self._share)

    def _windows(self, pieces: Sequence[corpus.Piece]) -> Rows:
        text = torch.frombuffer(bytearray(corpus.join(pieces)), dtype=torch.uint8)
        return Rows(text.unfold(0, self._context + 1, self._context))
