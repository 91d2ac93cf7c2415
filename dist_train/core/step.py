"""The two halves of a training step: compute gradients, apply gradients.

What lies between the halves is the coupling's matter; every mode is this same step, cut in another place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.agreement import Outputs
from dist_train.core.seeds import generators_untouched
from dist_train.core.timing import StepClock
from dist_train.couplings import Coupling, Started
from dist_train.errors import TrainingError
from dist_train.task import Task, scores_of

SetPhase = Callable[[str], None]


@dataclass(frozen=True)
class Numerics:
    """How numbers are held: the device, the type in the forward pass, the memory layout of images."""

    device: torch.device
    bf16: bool = False
    channels_last: bool = False

    def context(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self.bf16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def place(self, batch: Any) -> Any:
        """Move a batch (tensors nested in tuples, lists and dicts) to the device without waiting for it."""
        if isinstance(batch, Tensor):
            if self.channels_last and batch.ndim == 4:
                return batch.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            return batch.to(self.device, non_blocking=True)
        if isinstance(batch, Mapping):
            return {key: self.place(value) for key, value in batch.items()}
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return type(batch)(*(self.place(value) for value in batch))
        if isinstance(batch, (tuple, list)):
            return type(batch)(self.place(value) for value in batch)
        return batch


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the model's batch-norm layers that keep running statistics."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return [layer for layer in layers if layer.running_mean is not None]


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Have batch-norm layers use their running statistics and leave them as they are."""
    layers = [layer for layer in batch_norms(model) if layer.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def loss_of(task: Task, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Return the task's loss and predictions; raises TrainingError where they are not what a task owes."""
    found = task.loss(model, batch)
    if not isinstance(found, tuple) or len(found) != 2:
        raise TrainingError(
            f"{type(task).__name__}.loss must return (mean loss, predictions), not a {type(found).__name__}"
        )
    loss, predictions = found
    if not isinstance(loss, Tensor) or loss.ndim:
        shape = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise TrainingError(
            f"{type(task).__name__}.loss must return the mean over the batch, a scalar, not {shape}"
        )
    return loss, predictions


def outputs_of(task: Task, device: torch.device) -> Outputs:
    """Return how the task's predictions, and other models' for the same batch, become scores."""

    def by(models: Sequence[nn.Module], batch: Any) -> list[Tensor]:
        if not models:
            return []
        # Another model is asked by the user's whole loss, which may draw random numbers.
        with torch.no_grad(), generators_untouched(device):
            return [scores_of(task, loss_of(task, model, batch)[1]) for model in models]

    return Outputs(lambda predictions: scores_of(task, predictions), by)


@dataclass
class GradientHalf:
    """Compute gradients: forward and backward over this worker's batches of one update.

    Where the coupling foresees, the batch that comes next is fetched before each backward pass.
    """

    task: Task
    started: Started
    coupling: Coupling
    numerics: Numerics
    clock: StepClock
    phase: SetPhase
    _foreseen: Any = None

    def __call__(self, batches: Iterator[Any], sizes: Sequence[int], count: int, loss_sum: Tensor) -> None:
        """Leave the gradient of the mean loss over the update's ``count`` samples in the parameters.

        ``sizes`` are the sizes of this worker's batches; empty when it has no share in the update and
        joins the exchange with a gradient of zero and leaves its batch-norm statistics alone. Adds the
        loss, summed over samples, to ``loss_sum``.
        """
        shares = sizes or [0]
        for number, size in enumerate(shares, 1):
            batch, self._foreseen = self._foreseen, None
            if batch is None:
                batch = self._fetched(batches)
            # Only the last backward pass of an update exchanges gradients.
            local = self.started.local() if number < len(shares) else nullcontext()
            with local, nullcontext() if size else statistics_kept(self.started.module):
                loss, objective = self._forward(batch, size, count)
                self._look_ahead(batches)
                self._backward(objective)
            if size:
                loss_sum.add_(loss.detach(), alpha=size)

    def _fetched(self, batches: Iterator[Any]) -> Any:
        self.phase("data")
        return self.numerics.place(self.clock.timed_next(batches))

    def _look_ahead(self, batches: Iterator[Any]) -> None:
        if self.started.foresee is not None:
            self._foreseen = self._fetched(batches)
            with self.numerics.context():
                self.started.foresee(self._foreseen)
            self.clock.begin()

    def _forward(self, batch: Any, size: int, count: int) -> tuple[Tensor, Tensor]:
        self.phase("forward")
        self.clock.begin()
        with self.numerics.context():
            loss, predictions = loss_of(self.task, self.started.module, batch)
            objective = self.coupling.objective(loss, predictions, batch, size / count)
        self.clock.end("forward")
        return loss, objective

    def _backward(self, objective: Tensor) -> None:
        self.phase("backward")
        torch.autograd.backward(objective)
        self.clock.end("backward")


class UpdateHalf:
    """Apply gradients: clip them if asked to, and let the optimizer take its step."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip_norm: float | None
    ) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self._clip_norm = clip_norm
        # The norm before clipping, left on the device.
        self.gradient_norm: Tensor | None = None

    def __call__(self) -> None:
        self.clip()
        self.step()
        self.clear()

    def clip(self) -> None:
        if self._clip_norm is not None:
            self.gradient_norm = nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)

    def step(self) -> None:
        self._optimizer.step()

    def clear(self) -> None:
        # The optimizer's own way takes many times as long, as it tells the profiler.
        for parameter in self._parameters:
            parameter.grad = None
