"""Validation on all workers, exact: every sample counts once, however unevenly the set is split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dist_train.core.data import without_trouble
from dist_train.core.seeds import generators_untouched
from dist_train.core.step import Numerics, batch_norms, loss_of
from dist_train.exchange.collective import Collective, mean_in_place
from dist_train.task import Task


@dataclass(frozen=True)
class Validator:
    """This worker's part of the validation set, and how its sums meet those of the others."""

    task: Task
    loader: DataLoader[Any]
    sizes: list[int]
    numerics: Numerics
    collective: Collective

    def __call__(self, model: nn.Module, go_on: Callable[[], bool]) -> dict[str, float] | None:
        """Return the mean loss and metrics over the whole set; ``go_on`` is asked before every batch.

        Means are weighted by samples and summed in double precision. When any worker is told not to go
        on, all of them return None.
        """
        sums = self.sums(model, go_on)
        votes = self.collective.sum(torch.tensor([float(sums is None)], device=self.numerics.device))
        return None if sums is None or votes.item() else self._means(sums)

    def sums(self, model: nn.Module, go_on: Callable[[], bool]) -> dict[str, Tensor] | None:
        """Return loss and metrics summed over this worker's part alone; None when told not to go on."""
        sums: dict[str, Tensor] = {}
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), generators_untouched(self.numerics.device):
                for batch, size in zip(without_trouble(self.loader), self.sizes, strict=False):
                    if not go_on():
                        return None
                    self._add(model, self.numerics.place(batch), size, sums)
        finally:
            model.train(was_training)
        return sums

    def _add(self, model: nn.Module, batch: Any, size: int, sums: dict[str, Tensor]) -> None:
        means, _ = measured(self.task, model, batch, self.numerics)
        for name, mean in means.items():
            # Of no samples the sum is zero, even where the measure of the stand-in is not finite.
            total = mean * size if size else torch.zeros_like(mean)
            sums[name] = sums[name] + total if name in sums else total

    def _means(self, sums: dict[str, Tensor]) -> dict[str, float]:
        names = sorted(sums)
        samples = torch.tensor(float(sum(self.sizes)), dtype=torch.float64, device=self.numerics.device)
        totals = self.collective.sum(torch.stack([*(sums[name] for name in names), samples])).tolist()
        return {name: total / totals[-1] for name, total in zip(names, totals[:-1], strict=True)}


def measured(task: Task, model: nn.Module, batch: Any, numerics: Numerics) -> tuple[dict[str, Tensor], Any]:
    """Return loss and metrics of a placed batch, each as ``mean_of`` has it, and the predictions."""
    with numerics.context():
        loss, predictions = loss_of(task, model, batch)
        measures = {"loss": loss, **task.metrics(predictions, batch)}
    return {name: mean_of(value, numerics.device) for name, value in measures.items()}, predictions


def mean_of(measure: Any, device: torch.device) -> Tensor:
    """Return a measure, given by sample or as a mean already, as a mean in double precision."""
    return torch.as_tensor(measure, device=device).detach().double().mean()


@contextmanager
def evaluation_buffers(model: nn.Module, collective: Collective) -> Iterator[None]:
    """Give the model the mean of all workers' floating-point buffers, and its own back at the end.

    Each worker keeps its own batch-norm statistics while training; what is validated and delivered has
    their mean, the same on every worker.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if collective.workers == 1 or not buffers:
        yield
        return
    kept = [buffer.clone() for buffer in buffers]
    mean_in_place(collective, buffers)
    try:
        yield
    finally:
        _copy(kept, buffers)


@contextmanager
def recomputed_statistics(
    model: nn.Module, batches: Iterator[Any], number: int, task: Task, numerics: Numerics
) -> Iterator[None]:
    """Give batch-norm layers the plain mean of the statistics of ``number`` training batches.

    Running averages lag behind when updates are large and few (Goyal et al. 2017, section 5.2, figure 4).
    Frozen layers (in evaluation mode while the model trains) keep theirs, and so do the generators.
    """
    layers = [layer for layer in batch_norms(model) if layer.training]
    if number == 0 or not layers:
        yield
        return
    buffers = [buffer for layer in layers for buffer in layer.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        with torch.no_grad(), generators_untouched(numerics.device):
            for _ in range(number):
                with numerics.context():
                    task.loss(model, numerics.place(next(batches)))
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        _copy(kept, buffers)


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
