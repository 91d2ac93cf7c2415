"""A small task that can be told to fail: the same faults as real programs, at a chosen step."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_train import Rows, Task


class Tiny(Task):
    """Learns a line, with dropout and batch norm, so that random states and buffers matter.

    ``fault`` happens once, in the process of ``rank``, at its ``at``-th training step: a file made in
    ``marks`` keeps it from happening again after a restart. ``pace_s`` slows every step.
    """

    def __init__(
        self,
        fault: str = "none",
        rank: int = 0,
        at: int = 0,
        marks: str = ".",
        pace_s: float = 0.0,
        always: bool = False,
        width: int = 16,
    ) -> None:
        self._fault, self._rank, self._at, self._always = fault, rank, at, always
        self._mark = Path(marks) / "fault_happened"
        self._pace_s = pace_s
        self._width = width
        self._steps = 0

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, self._width), nn.BatchNorm1d(self._width), nn.Dropout(0.1), nn.Linear(self._width, 1)
        )

    def train_data(self) -> Rows:
        inputs = torch.randn(96, 4, generator=torch.Generator().manual_seed(1))
        return Rows(inputs, inputs.sum(1, keepdim=True))

    def validation_data(self) -> Rows:
        inputs = torch.randn(17, 4, generator=torch.Generator().manual_seed(2))
        return Rows(inputs, inputs.sum(1, keepdim=True))

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        if model.training:
            self._steps += 1
            time.sleep(self._pace_s)
            if self._due():
                self._fail()
        predictions = model(inputs)
        return F.mse_loss(predictions, targets), predictions

    def _due(self) -> bool:
        mine = int(os.environ["RANK"]) == self._rank and self._steps == self._at
        return mine and self._fault != "none" and (self._always or not self._mark.exists())

    def _fail(self) -> None:
        self._mark.touch()
        match self._fault:
            case "raise":
                raise RuntimeError("boom")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hold the interpreter":
                ctypes.PyDLL(None).sleep(600)
            case "sleep":
                time.sleep(600)
            case "signal":
                os.kill(os.getpid(), signal.SIGUSR1)
