"""What the classification tasks have in common: pixels as numbers, and the share of right answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def right_answers(predictions: Tensor, labels: Tensor, among: int = 1) -> Tensor:
    """1 where a label is among the ``among`` likeliest classes, else 0: (B, classes), (B,) -> (B,) floats."""
    likeliest = predictions.topk(min(among, predictions.shape[1]), dim=1).indices
    return (likeliest == labels.unsqueeze(1)).any(dim=1).float()


class Normalise:
    """Scale uint8 pixels (B, channels, H, W) to floats of mean 0 and standard deviation 1 in each channel.

    Pixels travel as bytes and become floats on the worker's device: a quarter of the traffic.
    ``mean`` and ``std`` are of pixels between 0 and 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        spread = torch.tensor(std).view(-1, 1, 1)
        self._factor = 1 / (255 * spread)
        self._offset = -torch.tensor(mean).view(-1, 1, 1) / spread

    def __call__(self, pixels: Tensor) -> Tensor:
        if self._factor.device != pixels.device:
            self._factor, self._offset = self._factor.to(pixels.device), self._offset.to(pixels.device)
        return torch.addcmul(self._offset, pixels.float(), self._factor)
