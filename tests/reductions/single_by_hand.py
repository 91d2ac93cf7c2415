"""What the modes of a parameter server should come to, written out by hand over torch and formulas alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import by_hand
import numpy as np
import torch
import torch.nn.functional as F
import toys
from torch import Tensor, nn

from dist_train.rules.schedule import Scheduled

SEED, SIZE = 5, 50
Weights = dict[str, Tensor]
# Makes one of torch's optimizers over parameter groups.
Make = Callable[[Iterable[dict[str, object]]], torch.optim.Optimizer]
DATA = toys.Points(SIZE, 1, torch.float32)


def model() -> nn.Module:
    """Return the network of the toys as a run of this seed begins with it."""
    torch.manual_seed(SEED)
    return toys.Plain(SIZE).model().float().train()


def first_weights() -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model().named_parameters()}


def mean_loss(network: nn.Module, rows: Sequence[int]) -> Tensor:
    return F.cross_entropy(network(DATA.inputs[rows]), DATA.classes[rows])


def gradient(weights: Weights, rows: Sequence[int]) -> Weights:
    """Return the gradient of the mean loss over ``rows``."""
    network = model()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])
    named = dict(network.named_parameters())
    return dict(zip(named, torch.autograd.grad(mean_loss(network, rows), list(named.values())), strict=True))


def combined(formula: Callable[..., Tensor], *operands: Weights) -> Weights:
    """Apply a formula for one tensor to each of the model's."""
    return {name: formula(*(each[name] for each in operands)) for name in operands[0]}


def pieces(count: int, sizes: int) -> list[np.ndarray]:
    """Return the first ``count`` pieces of ``sizes`` samples of the first epoch's shuffle."""
    order = by_hand.order(SEED, 0, SIZE)
    return [order[sizes * number : sizes * (number + 1)] for number in range(count)]


def grouped(network: nn.Module, decay: float) -> list[dict[str, object]]:
    """Return parameter groups that decay weights, and neither biases nor scales."""
    parameters = list(network.parameters())
    return [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]


def trained(
    make: Make,
    batches: Sequence[np.ndarray],
    decay: float = 0.0,
    accumulate: int = 1,
    clip: float | None = None,
    made_with: Callable[[int], Scheduled] | None = None,
) -> Weights:
    """Train by torch's own optimizer; each batch is taken in ``accumulate`` near-equal pieces.

    ``made_with(samples)`` is what moves between updates: ``samples`` were trained before.
    """
    network = model()
    optimizer = make(grouped(network, decay))
    done = 0
    for batch in batches:
        if made_with is not None:
            now = made_with(done)
            for group, base in zip(optimizer.param_groups, (decay, 0.0), strict=True):
                group.update(lr=now.rate, momentum=now.momentum, weight_decay=now.weight_decay * base)
        done += len(batch)
        for piece in np.array_split(batch, accumulate):
            if len(piece):
                (mean_loss(network, piece) * (len(piece) / len(batch))).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def stale(
    pushes: int, members: int, update: Callable[[Weights, Weights, Weights, int, int], Weights]
) -> Weights:
    """Let members read and push in turn, each reading right after its own push, gradients of 4 samples.

    ``update(newest, gradient, read, member, staleness)`` returns the next parameters.
    """
    versions = [first_weights()]
    for push, rows in enumerate(pieces(pushes, 4)):
        read = max(0, push - members + 1)
        made = gradient(versions[read], rows)
        versions.append(update(versions[-1], made, versions[read], push % members, push - read))
    return versions[-1]
