"""A task whose parameters count how often each sample was trained, whatever happened on the way."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_train import Rows, Task

SAMPLES, BATCH = 192, 4


class Counting(Task):
    """With plain SGD of rate 1, parameter i is minus the number of times that sample i was trained.

    A row is ``BATCH`` times a unit vector and the loss its product with the parameters: the mean over a
    batch has the sum of the batch's unit vectors as its gradient, in whole numbers.

    ``poison`` is a sample whose loss is not a number, ``always`` or only once; ``broken`` has every loss
    raise, ``broken_validation`` those of validations. ``pace_s`` slows every gradient, and with ``stalls``
    validations do not end, until there is a file ``hurry`` in ``marks``.
    """

    def __init__(
        self,
        pace_s: float = 0.0,
        poison: int = -1,
        always: bool = False,
        broken: str = "",
        broken_validation: str = "",
        stalls: bool = False,
        marks: str = ".",
    ) -> None:
        self._pace_s = pace_s
        self._poison, self._always = poison, always
        self._broken = {True: broken, False: broken_validation}
        self._stalls = stalls
        self._mark = Path(marks) / "poisoned"
        self._hurry = Path(marks) / "hurry"

    def model(self) -> nn.Module:
        counts = nn.Linear(SAMPLES, 1, bias=False)
        nn.init.zeros_(counts.weight)
        return counts

    def train_data(self) -> Rows:
        return Rows(BATCH * torch.eye(SAMPLES))

    def validation_data(self) -> Rows:
        return Rows(torch.eye(SAMPLES)[:6])

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        (inputs,) = batch
        predictions = model(inputs)
        loss = predictions.mean()
        self._fail(self._broken[model.training])
        if model.training:
            if self._pace_s and not self._hurry.exists():
                time.sleep(self._pace_s)
            if self._is_poisoned(inputs):
                loss = loss * float("nan")
        while self._stalls and not (model.training or self._hurry.exists()):
            time.sleep(0.02)
        return loss, predictions

    def _fail(self, error: str) -> None:
        if error == "configuration":
            from dist_train.errors import ConfigError

            raise ConfigError("task_options.broken: it is")
        if error:
            raise RuntimeError(error)

    def _is_poisoned(self, inputs: Tensor) -> bool:
        if self._poison < 0 or not bool(inputs[:, self._poison].any()):
            return False
        if self._always:
            return True
        try:
            os.close(os.open(self._mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True
