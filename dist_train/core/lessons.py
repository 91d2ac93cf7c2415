"""How far a replica's predictions were from its teachers', between two reports."""

from __future__ import annotations

import torch
from torch import Tensor

from dist_train.exchange.collective import Collective


class Lessons:
    """Sums up one worker's part of the agreement, on the device, over the updates that had teachers."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), dtype=torch.float64, device=device)
        self._updates = 0
        self._under_way = False

    def agreed(self, loss: Tensor, share: float) -> None:
        """Take note of the agreement on a batch that holds ``share`` of the update's samples."""
        self._sum += loss.double() * share
        self._under_way = True

    def update_made(self) -> None:
        self._updates += self._under_way
        self._under_way = False

    def own(self) -> float | None:
        """Return this worker's part of the mean since the last report; None if nothing was taught."""
        return self._mean(self._sum)

    def of_all(self, collective: Collective) -> float | None:
        """Return the mean since the last report over all workers, who call it together."""
        return self._mean(collective.gather(self._sum.reshape(1)).sum())

    def _mean(self, total: Tensor) -> float | None:
        found, updates = float(total), self._updates
        self._sum.zero_()
        self._updates = 0
        return found / updates if updates else None
