"""Teachers who train on the same batches: replicas send one another what they predict, batch by batch.

There is no second model and no second forward pass, and a teacher is never stale; but all replicas see the
same samples (Sodhani et al. 2020, prediction exchange).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Hands in (updates, batch), how many workers of the group have such a batch, and the scores; returns those of
# the teachers that are there, the same ones on all these workers.
Swap = Callable[[tuple[int, int], int, bytes], Sequence[bytes]]


class Peers:
    """``workers_with`` says how many workers of the group have a batch of that number in the next update."""

    foresee = None

    def __init__(self, swap: Swap, workers_with: Callable[[int], int] = lambda batch: 1) -> None:
        self._swap = swap
        self._workers_with = workers_with
        self._place = (-1, 0)

    def begin(self, model: nn.Module, updates: int) -> None:
        del model, updates
        self._place = (-1, 0)

    def predictions(self, scores: Tensor, batch: Any, updates: int) -> Sequence[Tensor]:
        del batch
        same_update = updates == self._place[0]
        self._place = (updates, self._place[1] + 1 if same_update else 0)
        sent = scores.float().cpu().contiguous()
        # One that has come apart must not take the others along: it sends nothing.
        said = sent.numpy().tobytes() if bool(torch.isfinite(sent).all()) else b""
        return [
            torch.from_numpy(np.frombuffer(each, np.float32).reshape(sent.shape).copy()).to(scores.device)
            for each in self._swap(self._place, self._workers_with(self._place[1]), said)
        ]

    def after(self, updates: int) -> None:
        del updates
