"""A shard of a parameter server: one slice of a model's parameters, and the optimizer that trains it.

A plain object: it knows no processes and decides nothing. It is told which gradients to take, and when to
step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dist_train import optimizers
from dist_train.config import schema
from dist_train.core.damping import DelayCompensation
from dist_train.core.flat import FlatState, Layout
from dist_train.errors import ConfigError
from dist_train.rules.schedule import Scheduled
from dist_train.rules.slices import slices


class Slots(Protocol):
    """Memory for a slice of the parameters, version after version."""

    def current(self) -> Tensor:
        """Return the newest version: a vector, not to be written to."""
        ...

    def begin(self, version: int) -> Tensor:
        """Return memory for ``version``, its content undefined, which nobody else sees yet."""
        ...

    def commit(self, version: int) -> None:
        """Let ``version`` be the newest."""
        ...


class PlainSlots:
    """Slots in this process's own memory, for a slice of ``size`` elements."""

    def __init__(self, size: int) -> None:
        self._newest, self._next = torch.zeros(size), torch.zeros(size)

    def current(self) -> Tensor:
        return self._newest

    def begin(self, version: int) -> Tensor:
        del version
        return self._next

    def commit(self, version: int) -> None:
        del version
        self._newest, self._next = self._next, self._newest


@dataclass(frozen=True)
class ShardState:
    """What a shard holds, or several together: vectors over a slice of the layout, or over all of it.

    ``mean_squares`` are delay compensation's, by member.
    """

    parameters: Tensor
    optimizer: FlatState
    mean_squares: dict[int, Tensor] = field(default_factory=dict)

    def part(self, part: range) -> ShardState:
        """Return a window on a slice of this state: what is written to it is written here."""
        return ShardState(
            self.parameters[part.start : part.stop],
            self.optimizer.part(part),
            {member: values[part.start : part.stop] for member, values in self.mean_squares.items()},
        )


def parts(layout: Layout, shards: int, settings: schema.AnyOptimizer) -> list[range]:
    """Cut the layout's vector into a slice for each shard, as the optimizer allows.

    Raises ConfigError if there are more shards than slices can be made.
    """
    try:
        return slices(layout.size, shards, None if _elementwise(settings) else layout.offsets)
    except ValueError as error:
        raise ConfigError(f"parallel.server.shards: the parameters' {error}") from error


class Shard:
    """The slice ``part`` of the layout's vector, trained by an optimizer of its own.

    Elementwise optimizers give the same bits as one over the whole model, wherever it is cut (for
    parameters that are not row-major in the model, if their size is a multiple of 16). LARS needs whole
    parameters: ValueError if ``part`` cuts one.
    """

    def __init__(
        self,
        layout: Layout,
        part: range,
        settings: schema.AnyOptimizer,
        memory: Slots,
        damping: DelayCompensation | None = None,
    ) -> None:
        self._memory = memory
        self._damping = damping
        self._settings = settings
        self._mean = _Mean(len(part))
        self._pieces = _pieces(layout, part, _elementwise(settings))
        groups = [
            {"name": name, "params": [each.weight for each in self._pieces if each.group == name], **options}
            for name, options in optimizers.group_options(settings).items()
        ]
        self._optimizer = optimizers.over([group for group in groups if group["params"]], settings)
        self._attach(FlatState.begin(len(part), settings))

    def load(self, version: int, state: ShardState) -> None:
        """Go on from a copy of ``state``, published as ``version``; gradients taken before are forgotten."""
        self._mean.clear()
        for key, vector in self._vectors.items():
            vector.copy_(state.optimizer.vectors[key])
        self._attach(FlatState(self._vectors, state.optimizer.scalars))
        if self._damping is not None:
            self._damping.load(state.mean_squares)
        self._memory.begin(version).copy_(state.parameters)
        self._memory.commit(version)

    def take(
        self,
        member: int,
        gradient: Tensor,
        weight: float,
        base: Tensor | None = None,
        borrow: bool = False,
        scale: float = 1.0,
    ) -> None:
        """Add ``scale`` times a gradient to the coming step, which takes their mean by ``weight``.

        ``base``, the parameters that the member computed it from, is needed for delay compensation alone.
        ``borrow``: the caller leaves the gradient's memory as it is until the step, so that the only one of
        a step need not be copied; otherwise the memory is free at once.
        """
        if self._damping is not None:
            if base is None:
                raise ValueError("delay compensation needs the parameters the gradient was computed from")
            compensated = self._mean.room()
            self._damping.compensate(member, gradient, self._memory.current(), base, compensated)
            gradient, borrow = compensated, True
        self._mean.add(gradient, weight, borrow, scale)

    def step(self, version: int, made_with: Scheduled) -> None:
        """Apply the gradients taken since the last step, and publish the parameters as ``version``.

        Raises RuntimeError if nothing was taken.
        """
        gradient = self._mean.clear()
        if gradient is None:
            raise RuntimeError(f"version {version} has no gradient to be made from")
        optimizers.set_for_update(self._optimizer, self._settings, made_with)
        current = self._memory.current()
        parameters = self._memory.begin(version).copy_(current)
        for piece in self._pieces:
            piece.weight.data = piece.of(parameters)
            piece.weight.grad = piece.of(gradient)
        self._optimizer.step()
        for piece in self._pieces:
            piece.weight.grad = None
        self._memory.commit(version)

    def state(self) -> ShardState:
        """Return what the shard holds: its own memory, which the next step changes."""
        scalars = {
            key: float(value)
            for key, value in self._optimizer.state[self._pieces[0].weight].items()
            if key not in self._vectors
        }
        squares = {} if self._damping is None else self._damping.mean_squares
        return ShardState(self._memory.current(), FlatState(self._vectors, scalars), squares)

    def export(self, into: ShardState) -> None:
        """Copy what the shard holds; a member that has pushed nothing has a mean square of zeros."""
        own = self.state()
        into.parameters.copy_(own.parameters)
        for key, vector in own.optimizer.vectors.items():
            into.optimizer.vectors[key].copy_(vector)
        into.optimizer.scalars.update(own.optimizer.scalars)
        for values in into.mean_squares.values():
            values.zero_()
        for member, values in own.mean_squares.items():
            into.mean_squares[member].copy_(values)

    def _attach(self, state: FlatState) -> None:
        """Have the optimizer keep its state in the vectors of ``state``."""
        self._vectors = state.vectors
        for piece in self._pieces:
            vectors = {key: piece.of(vector) for key, vector in state.vectors.items()}
            scalars = {key: torch.tensor(value) for key, value in state.scalars.items()}
            self._optimizer.state[piece.weight] = {**vectors, **scalars}


@dataclass
class _Piece:
    """What the optimizer takes for one parameter: elements ``start`` to ``stop`` of the slice."""

    group: str
    start: int
    stop: int
    shape: tuple[int, ...]
    # What the optimizer knows it by; each step gives it the memory of the next version.
    weight: Tensor = field(default_factory=lambda: torch.empty(0))

    def of(self, vector: Tensor) -> Tensor:
        return vector[self.start : self.stop].view(self.shape)


def _pieces(layout: Layout, part: range, elementwise: bool) -> list[_Piece]:
    """Cut a slice into as few pieces as give the bits that whole parameters would.

    Parameters of a group that lie end to end are one piece. A piece ends where padding begins: vectorised
    steps treat the last elements of a tensor apart from the rest, and these must be the same ones.
    """
    pieces: list[_Piece] = []
    for placed in layout.parameters:
        start, stop = max(placed.start, part.start) - part.start, min(placed.stop, part.stop) - part.start
        if start >= stop:
            continue
        if elementwise and pieces and (pieces[-1].group, pieces[-1].stop) == (placed.group, start):
            pieces[-1].stop = stop
            pieces[-1].shape = (stop - pieces[-1].start,)
        elif elementwise:
            pieces.append(_Piece(placed.group, start, stop, (stop - start,)))
        elif stop - start == placed.stop - placed.start:
            pieces.append(_Piece(placed.group, start, stop, placed.shape))
        else:
            raise ValueError(f"{part} cuts {placed.name}, which its optimizer needs whole")
    return pieces


def _elementwise(settings: schema.AnyOptimizer) -> bool:
    """Whether each element's step depends on that element alone."""
    return not isinstance(settings, schema.LARS)


class _Mean:
    """The weighted mean of gradients, summed up as they come; the only one of a step is taken as it is."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rooms: list[Tensor] = []
        self._held: Tensor | None = None
        self._unit = self._total = 0.0

    def room(self) -> Tensor:
        """Return memory to make the next gradient in; it stays as it is until the step if borrowed."""
        return self._room(0 if self._held is None else 1)

    def add(self, gradient: Tensor, weight: float, borrow: bool, scale: float) -> None:
        if gradient.shape != (self._size,) or not weight > 0:
            raise ValueError(
                f"expected {self._size} elements of weight above 0, not shape {list(gradient.shape)} "
                f"of weight {weight}"
            )
        if self._held is None:
            if scale != 1.0:
                self._held = torch.mul(gradient, scale, out=self._room(0))
            else:
                self._held = gradient if borrow else self._room(0).copy_(gradient)
            self._unit, self._total = weight, 1.0
        else:
            # Weights count by the first one, so that equal ones make a plain sum.
            share = weight / self._unit
            self._held = torch.add(self._held, gradient, alpha=share * scale, out=self._room(0))
            self._total += share

    def clear(self) -> Tensor | None:
        """Return the mean, valid until the next gradient, and begin anew; None if there is none."""
        held, self._held = self._held, None
        return held if held is None or self._total == 1.0 else held.div_(self._total)

    def _room(self, number: int) -> Tensor:
        while len(self._rooms) <= number:
            self._rooms.append(torch.empty(self._size))
        return self._rooms[number]
