"""How far predictions were from the teachers', between two reports: of a replica, or of a student."""

from __future__ import annotations

import torch
from torch import Tensor

from dist_train.exchange.collective import Collective


class Lessons:
    """Sums up one worker's agreement, on the device, over the batches that had teachers, by their shares."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), dtype=torch.float64, device=device)
        self._shares = 0.0

    def agreed(self, loss: Tensor, share: float) -> None:
        """Take note of the agreement on a batch that holds ``share`` of the update's samples."""
        self._sum += loss.double() * share
        self._shares += share

    def own(self) -> float | None:
        """Return this worker's mean since the last report; None if it was taught nothing."""
        return self._mean(self._taken())

    def of_all(self, collective: Collective) -> float | None:
        """Return the mean since the last report over all workers, who call it together."""
        return self._mean(collective.gather(self._taken()).sum(dim=0))

    def _taken(self) -> Tensor:
        """Return the sum and the shares since the last report, and begin anew."""
        taken = torch.stack([self._sum, torch.full_like(self._sum, self._shares)])
        self._sum.zero_()
        self._shares = 0.0
        return taken

    def _mean(self, taken: Tensor) -> float | None:
        total, shares = taken.tolist()
        return total / shares if shares else None
