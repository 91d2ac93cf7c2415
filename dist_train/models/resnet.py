"""ResNet-18 and ResNet-50 for ImageNet, as in Goyal et al. 2017 (arXiv 1706.02677), section 5.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the first one strides."""

    expansion = 1

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.last_norm = nn.BatchNorm2d(width)
        self.shortcut = shortcut(fan_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.last_norm(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 one strides."""

    expansion = 4

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        fan_out = width * self.expansion
        self.conv1 = nn.Conv2d(fan_in, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, fan_out, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(fan_out)
        self.shortcut = shortcut(fan_in, fan_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.last_norm(self.conv3(y))
        return F.relu(y + self.shortcut(x))


def shortcut(fan_in: int, fan_out: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 projection where the shape changes."""
    if stride == 1 and fan_in == fan_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out))


class ResNet(nn.Module):
    """Four stages of residual blocks: (B, channels, H, W) -> (B, classes).

    ``stages`` counts the blocks of each stage. ``zero_last_gamma`` starts each block as the identity.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        stages: Sequence[int],
        classes: int,
        channels: int,
        zero_last_gamma: bool,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks: list[nn.Module] = []
        fan_in = 64
        for stage, size in enumerate(stages):
            for index in range(size):
                blocks.append(block(fan_in, 64 * 2**stage, 2 if stage and not index else 1))
                fan_in = 64 * 2**stage * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(fan_in, classes)
        self._initialise(zero_last_gamma)

    def _initialise(self, zero_last_gamma: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock | Bottleneck) and zero_last_gamma:
                nn.init.zeros_(module.last_norm.weight)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.conv(images))))
        x = self.blocks(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def resnet18(classes: int = 1000, channels: int = 3, zero_last_gamma: bool = True) -> ResNet:
    """Make a ResNet-18: 11,689,512 parameters for 1000 classes."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, channels, zero_last_gamma)


def resnet50(classes: int = 1000, channels: int = 3, zero_last_gamma: bool = True) -> ResNet:
    """Make a ResNet-50: 25,557,032 parameters for 1000 classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, channels, zero_last_gamma)
