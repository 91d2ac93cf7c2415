"""The residual networks for 32 x 32 images of He et al. 2015 (arXiv 1512.03385), section 4.2."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "group"]


def normalisation(channels: int, norm: Norm) -> nn.BatchNorm2d | nn.GroupNorm:
    """Batch norm, or group norm (at most 8 groups), whose result does not depend on the rest of the batch."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(math.gcd(8, channels), channels)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (the paper's option A)."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = fan_out - fan_in
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.norm1 = normalisation(fan_out, norm)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.norm2 = normalisation(fan_out, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and not self.new_channels:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class CifarResNet(nn.Module):
    """``depth`` = 6n + 2 layers in three stages, each twice as wide: (B, channels, H, W) -> (B, classes).

    ``zero_last_gamma`` starts each block as the identity (Goyal et al. 2017, section 5.1).
    Raises ValueError for a depth that is not 6n + 2.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        depth: int = 20,
        width: int = 16,
        norm: Norm = "batch",
        zero_last_gamma: bool = True,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2 (20, 32, 44, ...), found {depth}")
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = normalisation(width, norm)
        blocks: list[nn.Module] = []
        fan_in = width
        for stage in range(3):
            fan_out = width * 2**stage
            for index in range(depth // 6):
                blocks.append(Block(fan_in, fan_out, 2 if stage and not index else 1, norm))
                fan_in = fan_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(fan_in, classes)
        self._initialise(zero_last_gamma)

    def _initialise(self, zero_last_gamma: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Block) and zero_last_gamma:
                nn.init.zeros_(module.norm2.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(images)))
        x = self.blocks(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits
