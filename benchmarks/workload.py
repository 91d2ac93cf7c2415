"""What all contestants train: the same model, the same data in memory, the same batch, the same loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.turns import Turn

BATCH = 32  # per worker
SAMPLES = 4096
CLASSES = 10
LEARNING_RATE = 0.01
MOMENTUM = 0.9
LOG_EVERY = 10

# The MLPs' two hidden layers: 0.1, 1, 10 and 50 million parameters.
WIDTHS = {"mlp_100k": 112, "mlp_1m": 680, "mlp": 2800, "mlp_50m": 6680}
SHAPES = {"resnet": (3, 32, 32), "tiny": (64,)} | dict.fromkeys(WIDTHS, (784,))


def make_model(workload: str) -> nn.Module:
    """Make the small ResNet (0.27 million parameters), an MLP (``WIDTHS``), or next to nothing."""
    if workload == "resnet":
        from dist_train.models.cifar_resnet import CifarResNet

        return CifarResNet(classes=CLASSES, depth=20)
    if workload == "tiny":
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    width = WIDTHS[workload]
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


def make_columns(workload: str, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Make random inputs (samples, ...) and labels (samples,)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((samples, *SHAPES[workload]), generator=generator)
    return inputs, torch.randint(CLASSES, (samples,), generator=generator)


@dataclass(frozen=True)
class Memory(Dataset[tuple[Tensor, Tensor]]):
    """Samples in memory that a DataLoader fetches a whole batch at a time; collate with ``whole``."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        return self.inputs[rows], self.labels[rows]


def whole(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Collate what has come as one batch."""
    return batch


@cache
def _turn() -> Turn:
    return Turn()


def step_begins() -> None:
    """Wait for this contestant's turn. Whoever calls ``loss_of`` need not."""
    _turn().step_begins()


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean loss and the predictions. In every contestant a step of training begins here."""
    if model.training:
        step_begins()
    inputs, labels = batch
    predictions = model(inputs)
    return F.cross_entropy(predictions, labels), predictions
