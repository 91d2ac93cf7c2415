"""A model over one flat vector: how parameters, gradients and statistics travel to and from a server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dist_train.core.flat import Layout, Placed
from dist_train.core.staging import Side, Staging
from dist_train.core.writes import Writes
from dist_train.errors import TrainingError
from dist_train.exchange.finite import copy_finite, is_finite


class FlatModel:
    """A model whose trainable parameters live in one vector, laid out as ``layout`` says.

    On a CPU the vector is ``host``, or memory shared with others; on a GPU it is the device's own, and
    ``host`` is the (page-locked) place that copies pass through. Parameters that are not row-major keep
    memory of their own and are copied.
    """

    def __init__(self, model: nn.Module, layout: Layout, host: Tensor | None = None) -> None:
        """``host`` is given where others are to read it."""
        named = dict(model.named_parameters())
        self._placed: list[tuple[Placed, nn.Parameter]] = [
            (each, named[each.name]) for each in layout.parameters
        ]
        device = self._placed[0][1].device
        self.layout = layout
        self._host = host
        self._on_cpu = device.type == "cpu"
        self._staging: Staging | None = None
        self._statistics = list(_statistics(model))
        self._inside = [each for each in self._placed if each[1].is_contiguous()]
        self._apart = [each for each in self._placed if not each[1].is_contiguous()]
        self._writes: Writes | None = None
        self._may_be_shared: bool | None = None
        self.vector = self.host if self._on_cpu else torch.zeros(layout.size, device=device)
        with torch.no_grad():
            for placed, parameter in self._placed:
                placed.view(self.vector).copy_(parameter)
        self._lay_on(self.vector)

    @property
    def host(self) -> Tensor:
        """Memory of the model's own; made when there is none."""
        if self._host is None:
            self._host = torch.zeros(self.layout.size, pin_memory=not self._on_cpu)
        return self._host

    @property
    def statistics_size(self) -> int:
        """The numbers that ``statistics_into`` writes."""
        return statistics_size(self._statistics)

    @torch.no_grad()
    def arrived(self) -> None:
        """Give the model what was written to ``host``."""
        if not self._on_cpu:
            self.vector.copy_(self.host, non_blocking=True)
        elif self.vector is not self.host:
            self._lay_on(self.host)
        for placed, parameter in self._apart:
            parameter.copy_(placed.view(self.vector))
        self._writes = None

    def watch(self) -> None:
        """See whether the computation that comes writes to the parameters, if that is not known yet."""
        if self._may_be_shared is None and self._on_cpu:
            self._writes = Writes(self._named_inside(), values=True)

    def may_be_shared(self) -> bool:
        """Say whether the model may lie on memory that others read: nothing writes to its parameters.

        Raises TrainingError when something has written to such memory.
        """
        if self._writes is not None:
            name = self._writes.found()
            if name is not None and self._may_be_shared:
                raise TrainingError(
                    f"{name} was written to while a gradient was computed (not so with the first one): the "
                    "parameters are the server's; have the task write to a copy, or use mode sync"
                )
            self._may_be_shared = name is None
        return self._may_be_shared is True

    @torch.no_grad()
    def compute_on(self, vector: Tensor) -> None:
        """Lay the model on ``vector``, which it never writes to; memory of its own is given back."""
        self._host = None
        self._lay_on(vector)
        for placed, parameter in self._apart:
            parameter.copy_(placed.view(vector))
        self._writes = Writes(self._named_inside())

    @torch.no_grad()
    def collect(self) -> Tensor:
        """Return the vector with what the model's own steps made of it."""
        for placed, parameter in self._apart:
            placed.view(self.vector).copy_(parameter)
        return self.vector

    def _lay_on(self, vector: Tensor) -> None:
        self.vector = vector
        for placed, parameter in self._inside:
            parameter.data = placed.view(vector)

    def _named_inside(self) -> dict[str, nn.Parameter]:
        return {placed.name: parameter for placed, parameter in self._inside}

    def stage_gradients(self, side: Side) -> None:
        """Copy gradients on ``side`` during the backward pass; core/staging.py says when that may be."""
        self._staging = Staging(self._placed, side)

    def expect_gradient(self, out: Tensor) -> None:
        """Take note that the coming backward pass makes the gradient that goes into ``out``."""
        if self._staging is not None:
            self._staging.begin(out)

    @torch.no_grad()
    def gradient_into(
        self, out: Tensor, part: slice = slice(None), weight: float = 1.0, add: bool = False
    ) -> bool:
        """Write (or add) ``weight`` times the gradients of the parameters number ``part`` into ``out``.

        A parameter without a gradient counts as one whose gradient is zero. Returns when this part of ``out``
        is whole: whether all of it is finite.
        """
        targets: list[Tensor] = []
        gradients: list[Tensor] = []
        staged = self._staging.finish(out) if self._staging is not None else frozenset()
        own = self._placed[part]
        for placed, parameter in own:
            if placed.name in staged:
                continue
            target = out[placed.start : placed.stop].view(placed.shape)
            if parameter.grad is not None:
                targets.append(target)
                gradients.append(parameter.grad)
            elif not add:
                target.zero_()
        if weight != 1.0 and gradients and not add:
            gradients = list(torch._foreach_mul(gradients, weight))
        if not (add or staged) and self._on_cpu:
            return copy_finite(targets, gradients)
        if add and targets:
            torch._foreach_add_(targets, [each.to(out.device) for each in gradients], alpha=weight)
        elif targets:
            torch._foreach_copy_(targets, gradients, non_blocking=True)
            if gradients[0].is_cuda:
                torch.cuda.current_stream(gradients[0].device).synchronize()
        return is_finite(out[own[0][0].start : own[-1][0].stop]) if own else True

    def statistics_into(self, out: Tensor) -> None:
        """Copy the model's buffers (batch-norm statistics) into a float64 vector."""
        write_statistics(self._statistics, out)

    def take_statistics(self, vector: Tensor) -> None:
        """Give the model's buffers the values of such a vector."""
        read_statistics(self._statistics, vector)


def _statistics(model: nn.Module) -> Iterable[Tensor]:
    """The buffers that training changes and a checkpoint keeps, each once."""
    saved = model.state_dict(keep_vars=True)
    buffers = {id(buffer) for buffer in model.buffers()}
    seen: set[int] = set()
    for value in saved.values():
        if isinstance(value, Tensor) and id(value) in buffers and id(value) not in seen:
            seen.add(id(value))
            yield value


def statistics_of(model: nn.Module) -> list[Tensor]:
    """Return the buffers that make up a model's statistics, in the order in which they travel."""
    return list(_statistics(model))


def statistics_size(buffers: Iterable[Tensor]) -> int:
    return sum(buffer.numel() for buffer in buffers)


@torch.no_grad()
def write_statistics(buffers: Iterable[Tensor], out: Tensor) -> None:
    """Copy buffers of any type into a float64 vector, which holds whole numbers up to 2**53 exactly."""
    start = 0
    for buffer in buffers:
        out[start : start + buffer.numel()].copy_(buffer.reshape(-1))
        start += buffer.numel()


@torch.no_grad()
def read_statistics(buffers: Iterable[Tensor], vector: Tensor) -> None:
    start = 0
    for buffer in buffers:
        buffer.copy_(vector[start : start + buffer.numel()].view(buffer.shape))
        start += buffer.numel()


def mean_statistics(buffers: Iterable[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    """Return the members' mean; of whole numbers, such as counts of batches, the first member's."""
    mean = torch.stack(list(vectors)).mean(dim=0)
    start = 0
    for buffer in buffers:
        if not buffer.is_floating_point():
            mean[start : start + buffer.numel()] = vectors[0][start : start + buffer.numel()]
        start += buffer.numel()
    return mean
