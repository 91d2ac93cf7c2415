"""Delay compensation: a stale gradient is moved towards what it would be at the newest parameters.

The other damping, by one over the staleness, is arithmetic on weights and rates and none of a shard's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dist_train.config import schema

# Zheng et al. 2016 as published by its authors: added to the mean square under the root.
EPSILON = 1e-7
# Elements worked on at once: what they need stays in the processor's cache from one pass to the next.
_BLOCK = 1 << 17


def delay_compensation(damping: schema.AnyDamping) -> DelayCompensation | None:
    """Return what ``damping`` asks of a shard: None where a gradient counts as it came."""
    if not isinstance(damping, schema.DelayCompensated) or damping.strength_in_force == 0:
        return None
    decay = damping.decay if damping.variant == "adaptive" else None
    return DelayCompensation(damping.strength_in_force, decay)


class DelayCompensation:
    """Delay-compensated ASGD (Zheng et al. 2016, equation 10 and section 4).

    For the mean gradient g of one push, computed by a member from the parameters ``base`` and taken at the
    parameters w, elementwise and before learning rate, momentum and weight decay::

        g + strength * g * g * (w - base)                           without ``decay``: a constant lambda
        ms = decay * ms + (1 - decay) * g * g                       with it: an adaptive one,
        g + strength / sqrt(ms + 1e-7) * g * g * (w - base)         ms of each member's own, from 0

    ``mean_squares`` holds ms by member.
    """

    def __init__(self, strength: float, decay: float | None) -> None:
        self.strength = strength
        self.decay = decay
        self.mean_squares: dict[int, Tensor] = {}

    def compensate(self, member: int, gradient: Tensor, current: Tensor, base: Tensor, out: Tensor) -> None:
        """Write the compensated gradient to ``out``; all are vectors of one size, the others left alone."""
        vectors = [gradient, current, base, out]
        if self.decay is None:
            _in_blocks(self._constant, vectors)
        else:
            if member not in self.mean_squares:
                self.mean_squares[member] = torch.zeros_like(gradient)
            _in_blocks(self._adaptive, [*vectors, self.mean_squares[member]])

    def load(self, mean_squares: Mapping[int, Tensor]) -> None:
        """Go on from a copy of these."""
        self.mean_squares = {member: values.clone() for member, values in mean_squares.items()}

    def _constant(self, gradient: Tensor, current: Tensor, base: Tensor, out: Tensor) -> None:
        torch.sub(current, base, out=out).mul_(gradient)
        torch.addcmul(gradient, out, gradient, value=self.strength, out=out)

    def _adaptive(
        self, gradient: Tensor, current: Tensor, base: Tensor, out: Tensor, mean_square: Tensor
    ) -> None:
        assert self.decay is not None
        mean_square.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        torch.sub(current, base, out=out).mul_(gradient)
        out.mul_(mean_square.add(EPSILON).rsqrt_())
        torch.addcmul(gradient, out, gradient, value=self.strength, out=out)


def _in_blocks(work: Callable[..., None], vectors: list[Tensor]) -> None:
    for blocks in zip(*(torch.split(vector, _BLOCK) for vector in vectors), strict=True):
        work(*blocks)
