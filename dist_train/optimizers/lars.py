"""LARS: every layer moves by the same share of its own size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, algorithm 1).

    For each parameter w with gradient g, already averaged over all workers::

        local = trust * |w| / (|g| + weight_decay * |w| + eps)      1 where |w| or |g| is 0
        u = momentum * u + local * (g + weight_decay * w)
        w = w - lr * u

    The paper keeps lr inside u, which makes no difference while it is constant; outside, the momentum
    needs no correction when it changes (Goyal et al. 2017, remark 2). In groups with ``adapt=False``,
    meant for normalisation parameters and biases, local is 1. Nothing waits for the device.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        eps: float = 1e-9,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "eps": eps,
            "nesterov": nesterov,
            "adapt": True,
        }
        super().__init__(params, defaults)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one update; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        gradients = [weight.grad for weight in weights]
        moves = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        if group["adapt"]:
            torch._foreach_mul_(moves, _local_rates(weights, gradients, group))
        momentum = group["momentum"]
        if momentum > 0:
            velocities = [self._velocity(weight) for weight in weights]
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, moves)
            if group["nesterov"]:
                torch._foreach_add_(moves, velocities, alpha=momentum)
            else:
                moves = velocities
        torch._foreach_add_(weights, moves, alpha=-group["lr"])

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        return velocity


def _local_rates(weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """One scalar per parameter, on its device."""
    weight_norms = torch.stack(torch._foreach_norm(weights))
    gradient_norms = torch.stack(torch._foreach_norm(gradients))
    scale = gradient_norms + group["weight_decay"] * weight_norms + group["eps"]
    adaptable = (weight_norms > 0) & (gradient_norms > 0)
    return list(torch.where(adaptable, group["trust"] * weight_norms / scale, 1.0).unbind())
