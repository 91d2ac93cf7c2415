"""What training should come to, written out by hand: it shares no code with the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Slots = dict[str, Tensor]


def sgd(p: Tensor, g: Tensor, s: Slots, rate: float, decay: float, t: int) -> Tensor:
    s["u"] = 0.9 * s.get("u", 0 * g) + g + decay * p
    return p - rate * s["u"]


def nesterov(p: Tensor, g: Tensor, s: Slots, rate: float, decay: float, t: int) -> Tensor:
    g = g + decay * p
    s["u"] = 0.9 * s.get("u", 0 * g) + g
    return p - rate * (g + 0.9 * s["u"])


def adagrad(p: Tensor, g: Tensor, s: Slots, rate: float, decay: float, t: int) -> Tensor:
    g = g + decay * p
    s["v"] = s.get("v", 0 * g) + g * g
    return p - rate * g / (s["v"].sqrt() + 1e-10)


def rmsprop(p: Tensor, g: Tensor, s: Slots, rate: float, decay: float, t: int) -> Tensor:
    g = g + decay * p
    s["v"] = 0.99 * s.get("v", 0 * g) + 0.01 * g * g
    return p - rate * g / (s["v"].sqrt() + 1e-8)


def adam(p: Tensor, g: Tensor, s: Slots, rate: float, decay: float, t: int) -> Tensor:
    g = g + decay * p
    s["m"] = 0.9 * s.get("m", 0 * g) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0 * g) + 0.001 * g * g
    return p - rate * (s["m"] / (1 - 0.9**t)) / ((s["v"] / (1 - 0.999**t)).sqrt() + 1e-8)


def adamw(p: Tensor, g: Tensor, s: Slots, rate: float, decay: float, t: int) -> Tensor:
    return adam(p, g, s, rate, 0.0, t) - rate * decay * p


def lars(p: Tensor, g: Tensor, s: Slots, rate: float, decay: float, t: int) -> Tensor:
    local = 0.001 * p.norm() / (g.norm() + decay * p.norm() + 1e-9) if p.ndim > 1 else 1.0
    s["u"] = 0.9 * s.get("u", 0 * g) + local * (g + decay * p)
    return p - rate * s["u"]


OPTIMIZERS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "sgd": (sgd, {"name": "sgd", "lr": 0.1, "momentum": 0.9}),
    "nesterov": (nesterov, {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": (adagrad, {"name": "adagrad", "lr": 0.1}),
    "rmsprop": (rmsprop, {"name": "rmsprop", "lr": 0.01}),
    "adam": (adam, {"name": "adam", "lr": 0.01}),
    "adamw": (adamw, {"name": "adamw", "lr": 0.01}),
    "lars": (lars, {"name": "lars", "lr": 2.0}),
}


def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return the epoch's shuffle: the samples in the order of Philox's words for (seed, epoch)."""
    return np.argsort(np.random.Philox(key=seed + (epoch << 64)).random_raw(size), kind="stable")


def global_batches(seed: int, size: int, batch: int, drop: bool = False) -> Iterator[np.ndarray]:
    """Cut one epoch's shuffle after the other into batches; the last one of each may be short."""
    epoch = 0
    while True:
        shuffled = order(seed, epoch, size)
        for start in range(0, size - batch + 1 if drop else size, batch):
            yield shuffled[start : start + batch]
        epoch += 1


def descend(
    model: nn.Module,
    mean_loss: Callable[[nn.Module, np.ndarray], Tensor],
    batches: Sequence[np.ndarray],
    update: Callable[..., Tensor],
    rate: float,
    decay: float = 0.0,
    clip: float | None = None,
) -> list[float]:
    """Train ``model`` in place on one global batch after the other; return the losses."""
    slots: dict[str, Slots] = {name: {} for name, _ in model.named_parameters()}
    losses = []
    for t, batch in enumerate(batches, 1):
        loss = mean_loss(model, batch)
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss, list(named.values()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        # torch documents this small constant.
        scale = 1.0 if clip is None else min(1.0, float(clip / (norm + 1e-6)))
        with torch.no_grad():
            for (name, p), g in zip(named.items(), gradients, strict=True):
                p.copy_(update(p, g * scale, slots[name], rate, decay if p.ndim > 1 else 0.0, t))
        losses.append(loss.item())
    return losses
