"""A plain multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLP(nn.Module):
    """Linear layers with an activation between them: (B, ...) of ``inputs`` values -> (B, outputs)."""

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int] = (128, 128), activation: str = "relu"
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([inputs, *hidden]):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        last = hidden[-1] if hidden else inputs
        self.layers = nn.Sequential(nn.Flatten(), *layers, nn.Linear(last, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits
