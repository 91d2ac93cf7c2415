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

# Hands in (updates, batch) and the scores, and returns those of the teachers that are there.
Swap = Callable[[tuple[int, int], bytes], Sequence[bytes]]


class Peers:
    foresee = None

    def __init__(self, swap: Swap) -> None:
        self._swap = swap
        self._place = (-1, 0)

    def begin(self, model: nn.Module, updates: int) -> None:
        del model, updates
        self._place = (-1, 0)

    def predictions(self, scores: Tensor, batch: Any, updates: int) -> Sequence[Tensor]:
        del batch
        same_update = updates == self._place[0]
        self._place = (updates, self._place[1] + 1 if same_update else 0)
        sent = scores.float().cpu().contiguous().numpy()
        found = [
            torch.from_numpy(np.frombuffer(each, np.float32).reshape(sent.shape).copy())
            for each in self._swap(self._place, sent.tobytes())
        ]
        # One that has come apart must not take the others along.
        return [each.to(scores.device) for each in found if bool(torch.isfinite(each).all())]

    def after(self, updates: int) -> None:
        del updates
