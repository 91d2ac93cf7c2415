"""A group of workers in one process: one after the other computes its share, and the shares are summed.

As in DistributedDataParallel, every worker's gradient is divided by their number before the sum. The sum of
two is the same in any order; the order in which Gloo adds up three or more is its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.core.flat_model import FlatModel
from dist_train.core.learner import Learner
from dist_train.core.seeds import (
    generator_states,
    generators_untouched,
    lease_seed,
    restore_generators,
    seed_all,
)
from dist_train.couplings import Apply, Coupling, Started
from dist_train.exchange.server import Figures, Turn
from dist_train.rules.messages import Lease
from dist_train.rules.sampling import Run, parts_of
from dist_train.rules.schedule import NO_STEP

CPU = torch.device("cpu")


class Apart:
    """A worker whose gradient stays where it is, weighted for a mean over the ``workers`` of its group."""

    writes = False

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def start(self, model: nn.Module) -> Started:
        return Started(model, nullcontext)

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        del predictions, batch
        return loss * (share * self._workers)

    def update(self, apply: Apply) -> None:
        del apply

    def observe(self, metrics: Mapping[str, float]) -> None:
        del metrics


class Mate:
    """A worker of the group besides the first; ``flat`` is its model over the parameters of all."""

    def __init__(self, learner: Learner, flat: FlatModel, rank: int) -> None:
        self.learner = learner
        self.flat = flat
        self._rank = rank

    def begin_lease(self, lease: Lease, parts: int) -> None:
        """Get ready for a lease that is trained in ``parts`` steps."""
        seed = self.learner.state.counted.seed
        assert seed is not None
        with generators_untouched():
            seed_all(lease_seed(seed, lease.epoch, lease.offset, self._rank))
            self._generators = generator_states(CPU)
        leases, self._batches = self.learner.leased()
        leases.feed(Run(lease.epoch, lease.offset, lease.count), parts)

    def step(self, count: int) -> list[Tensor | None]:
        """Compute its share of the gradient of the next ``count`` samples."""
        with generators_untouched():
            restore_generators(*self._generators, CPU)
            self.flat.arrived()
            self.learner.step_on(self._batches, count, NO_STEP)
            self._generators = generator_states(CPU)
        model = self.learner.state.model
        gradients = [parameter.grad for parameter in model.parameters()]
        model.zero_grad(set_to_none=True)
        return gradients


class Together:
    """The coupling of a group's first worker, whose model is ``flat``; ``outside`` is that of the group."""

    writes = False

    def __init__(self, outside: Coupling, mates: Sequence[Mate], flat: FlatModel, turn: Turn) -> None:
        self._outside = outside
        self._mates = mates
        self._flat = flat
        self._turn = turn
        self._own = Apart(1 + len(mates))

    def start(self, model: nn.Module) -> Started:
        self._model = model
        return self._outside.start(model)

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        return self._own.objective(loss, predictions, batch, share)

    def update(self, apply: Apply) -> None:
        turn = self._turn
        lease = turn.lease
        if turn.part == 0:
            for mate in self._mates:
                mate.begin_lease(lease, turn.parts)
        pieces = parts_of(Run(lease.epoch, lease.offset, lease.count), turn.parts)
        self._flat.collect()
        shares = [mate.step(pieces[turn.part].count) for mate in self._mates]
        _mean([parameter.grad for parameter in self._model.parameters()], shares)
        self._outside.update(apply)

    def observe(self, metrics: Mapping[str, float]) -> None:
        self._outside.observe(metrics)

    def figures(self, own: Figures) -> Figures:
        """Return the figures of the group, given the first worker's."""
        return replace(own, loss=own.loss + sum(mate.learner.figures().loss for mate in self._mates))


@torch.no_grad()
def _mean(own: Sequence[Tensor | None], others: Sequence[Sequence[Tensor | None]]) -> None:
    """Replace each of a worker's gradients by the mean over all workers."""
    part = 1 / (1 + len(others))
    for number, gradient in enumerate(own):
        if gradient is None:
            continue
        gradient.mul_(part)
        for row in others:
            if (other := row[number]) is not None:
                gradient.add_(other.mul_(part))
