"""A group of workers in one process: one after the other computes its share, and torch brings them together.

How Gloo adds up three numbers or more depends on where in which bucket they travel, and a compressed
gradient on those before it. So every worker has the buckets that DistributedDataParallel would send, and they
are summed by Gloo itself, between process groups that are all in this process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future, wait_all

from dist_train.config.schema import Parallel
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
from dist_train.couplings.allreduce import Exchange, compression, distributed
from dist_train.exchange.group import summed
from dist_train.exchange.server import Figures, Turn, settle_statistics
from dist_train.replay.loopback import process_groups
from dist_train.rules.messages import Lease
from dist_train.rules.sampling import Run, parts_of
from dist_train.rules.schedule import NO_STEP

CPU = torch.device("cpu")


class Apart:
    """A worker whose gradients stay in ``buckets``, weighted for a mean over the workers of its group."""

    writes = False

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel
        self.buckets: list[dist.GradBucket] = []

    def start(self, model: nn.Module) -> Started:
        (alone,) = process_groups(1)
        return distributed(model, self._parallel, Exchange(None, self._keep), alone)

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        del predictions, batch
        return loss * (share * self._parallel.group_size)

    def update(self, apply: Apply) -> None:
        del apply

    def observe(self, metrics: Mapping[str, float]) -> None:
        del metrics

    def _keep(self, state: None, bucket: dist.GradBucket) -> Future[Tensor]:
        del state
        self.buckets.append(bucket)
        kept: Future[Tensor] = Future()
        kept.set_result(bucket.buffer())
        return kept


class Mate:
    """A worker of the group besides the first; ``flat`` is its model over the parameters of all."""

    def __init__(self, learner: Learner, flat: FlatModel, rank: int, apart: Apart) -> None:
        self.learner = learner
        self.apart = apart
        self.flat = flat
        self._rank = rank
        # The buffers' values that came with the last gradient which was not refused.
        self._sound = torch.empty(flat.statistics_size, dtype=torch.float64)

    def begin_lease(self, lease: Lease, parts: int) -> None:
        """Get ready for a lease that is trained in ``parts`` steps."""
        seed = self.learner.state.counted.seed
        assert seed is not None
        with generators_untouched():
            seed_all(lease_seed(seed, lease.epoch, lease.offset, self._rank))
            self._generators = generator_states(CPU)
        leases, self._batches = self.learner.leased()
        leases.feed(Run(lease.epoch, lease.offset, lease.count), parts)

    def step(self, count: int) -> None:
        """Fill its buckets with its share of the gradient of the next ``count`` samples."""
        with generators_untouched():
            restore_generators(*self._generators, CPU)
            self.flat.arrived()
            self.learner.step_on(self._batches, count, NO_STEP)
            self._generators = generator_states(CPU)

    def statistics(self) -> Tensor:
        """Return the values of its buffers."""
        values = torch.empty_like(self._sound)
        self.flat.statistics_into(values)
        return values

    def settle(self, turn: Turn) -> None:
        """Hear what became of the group's gradient."""
        settle_statistics(turn, self.flat, self.statistics(), self._sound)


class Together:
    """The coupling of a group's first worker, whose model is ``flat``; ``outside`` is that of the group."""

    writes = False

    def __init__(
        self, parallel: Parallel, outside: Coupling, mates: Sequence[Mate], flat: FlatModel, turn: Turn
    ) -> None:
        self._outside = outside
        self._mates = mates
        self._flat = flat
        self._turn = turn
        self._own = Apart(parallel)
        self._groups = process_groups(parallel.group_size)
        self._exchanges = [compression(parallel, each) or Exchange(each, _mean) for each in self._groups]

    def start(self, model: nn.Module) -> Started:
        started = self._own.start(model)
        self._outside.start(model)
        for mate in self._mates:
            mate.settle(self._turn)
        return started

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
        for mate in self._mates:
            mate.step(pieces[turn.part].count)
        self._bring_together()
        self._outside.update(apply)
        if turn.is_last:
            for mate in self._mates:
                mate.settle(turn)

    def observe(self, metrics: Mapping[str, float]) -> None:
        self._outside.observe(metrics)

    def figures(self, own: Figures) -> Figures:
        """Return the figures of the group, given the first worker's."""
        losses = [own.loss, *(mate.learner.figures().loss for mate in self._mates)]
        return replace(own, loss=summed(losses))

    def statistics(self, own: Tensor) -> Tensor:
        """Return the mean of the workers' buffers, given the first worker's."""
        rows = [own.clone(), *(mate.statistics() for mate in self._mates)]
        sums = [group.allreduce([row]) for group, row in zip(self._groups, rows, strict=True)]
        for each in sums:
            each.wait()
        return rows[0] / len(rows)

    @torch.no_grad()
    def _bring_together(self) -> None:
        """Leave in the first worker's parameters the gradient of all."""
        aparts = [self._own, *(mate.apart for mate in self._mates)]
        for row in zip(*(each.buckets for each in aparts), strict=True):
            first, exchanges = row[0], zip(self._exchanges, row, strict=True)
            futures = [exchange.hook(exchange.state, bucket) for exchange, bucket in exchanges]
            first.buffer().copy_(wait_all(futures)[0])
            whose = zip(*(bucket.parameters() for bucket in row), strict=True)
            for same, gradient in zip(whose, first.gradients(), strict=True):
                if any(each.grad is not None for each in same):
                    same[0].grad = gradient
        for each in aparts:
            each.buckets.clear()
        for mate in self._mates:
            mate.learner.state.model.zero_grad(set_to_none=True)


def _mean(group: dist.ProcessGroup, bucket: dist.GradBucket) -> Future[Any]:
    """What DistributedDataParallel does without a hook: it multiplies by 1/n, and adds up."""
    whole = bucket.buffer().mul_(1 / group.size())
    return group.allreduce([whole]).get_future().then(lambda done: done.value()[0])
