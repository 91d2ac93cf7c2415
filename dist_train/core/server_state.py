"""The state that a parameter server owns, between the form of a checkpoint and that of the shards' memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from dist_train import optimizers
from dist_train.config import Config, schema
from dist_train.core.checkpoint import SERVER, SHARED, Part, load_part, rank_part, read_manifest
from dist_train.core.flat import (
    FlatState,
    Layout,
    flatten_optimizer_state,
    restore_optimizer_state,
    state_keys,
)
from dist_train.core.flat_model import (
    mean_statistics,
    read_statistics,
    statistics_of,
    statistics_size,
    write_statistics,
)
from dist_train.core.inner_state import InnerShape, InnerState
from dist_train.core.state import State, join, part_of
from dist_train.exchange.areas import Area, Vectors
from dist_train.exchange.deposits import Deposit
from dist_train.optimizers.outer import server_optimizer
from dist_train.plan import group_count


@dataclass(frozen=True)
class Shape:
    """``optimizer`` is what the shards run: the configured one or, if ``outer``, that of local steps.

    ``inner`` is what members with local steps keep for themselves.
    """

    optimizer: schema.AnyOptimizer
    outer: bool
    members: int
    group_size: int
    mean_squares: bool
    # Whether members are to show what their gradients were computed from.
    base: bool = False
    inner: InnerShape | None = None


class ServerState:
    """All that the server knows of a replica, on the CPU.

    ``statistics`` are each member's buffers as they are now, ``inner`` what members with local steps keep for
    themselves. What is saved and delivered has the buffers that belong to the state taken last.
    """

    def __init__(self, state: State, layout: Layout, shape: Shape) -> None:
        self.state = state
        self.layout = layout
        self.shape = shape
        squares = tuple(range(shape.members)) if shape.mean_squares else ()
        self.vectors = Vectors(layout.size, state_keys(shape.optimizer), squares)
        self.counts: dict[str, Any] = {}
        self._buffers = statistics_of(state.model)
        self._further: dict[str, Tensor] = {}
        self._scalars: dict[str, float] = {}
        self.statistics = [self._own_statistics() for _ in range(shape.members)]
        self._taken_statistics: Sequence[Tensor] = self.statistics
        self.inner: dict[int, Deposit] = {}

    @classmethod
    def of(cls, config: Config, model: nn.Module, workers: int) -> Self:
        """Make the state that a run of ``workers`` workers begins from: ``model`` as it is initialised."""
        state = State(model, optimizers.build(model, config.optimizer), torch.device("cpu"))
        parallel, outer = config.parallel, config.parallel.outer_in_force
        shape = Shape(
            optimizer=config.optimizer if outer is None else server_optimizer(outer),
            outer=outer is not None,
            members=group_count(parallel, workers),
            group_size=parallel.group_size,
            mean_squares=getattr(parallel.damping, "variant", None) == "adaptive",
            base=parallel.needs_base,
            inner=InnerShape.of(config),
        )
        return cls(state, Layout.of(model, config.optimizer), shape)

    @property
    def statistics_size(self) -> int:
        return statistics_size(self._buffers)

    @property
    def kept_vectors(self) -> int:
        """The vectors in one deposit of a member."""
        return 0 if self.shape.inner is None else len(self.shape.inner.keys)

    @property
    def needs_base(self) -> bool:
        """Whether the parameters that a gradient was computed from are in its member's memory."""
        return self.shape.base

    def restore(self, origin: Path) -> None:
        """Take a checkpoint of any mode; another number of members takes the buffers round about."""
        manifest = read_manifest(origin)
        self.state.restore_shared(load_part(origin, SHARED))
        self.counts, self.state.counted.carried = self.state.counted.carried, {}
        for member in range(self.shape.members):
            rank = member * self.shape.group_size % manifest.workers
            own = load_part(origin, rank_part(rank))
            self.state.restore_own(own, generators=False)
            self.statistics[member] = self._own_statistics()
            if self.shape.inner is not None:
                self.inner[member] = self._saved_inner(own, self.shape.inner)
        if f"{SERVER}.json" in manifest.files:
            part = load_part(origin, SERVER)
            self.counts = dict(part.values["counts"])
            self._further = dict(part.tensors)
            self._scalars = dict(part.values["scalars"])

    def begin(self, area: Area) -> dict[str, float]:
        """Fill an area for the shards to begin from; return the optimizer's scalars."""
        self.layout.flatten(dict(self.state.model.named_parameters()), area.parameters)
        flat = self._flat_state()
        for key, vector in area.optimizer.items():
            vector.copy_(flat.vectors[key])
        for member, squares in area.mean_squares.items():
            saved = self._further.get(f"mean_square.{member}")
            squares.zero_()
            if saved is not None and saved.shape == squares.shape:
                squares.copy_(saved)
        return flat.scalars

    def take(
        self, area: Area, scalars: Mapping[str, float], statistics: Sequence[Tensor] | None = None
    ) -> None:
        """Take what the shards have made of an area, and each member's buffers then; None: those of now."""
        self._taken_statistics = self.statistics if statistics is None else statistics
        self.layout.unflatten(area.parameters, dict(self.state.model.named_parameters()))
        flat = FlatState(dict(area.optimizer), dict(scalars))
        if self.shape.outer:
            self._further = {f"outer.{key}": vector for key, vector in flat.vectors.items()}
            self._scalars = dict(scalars)
            if self.shape.inner is not None and self.inner:
                # Another mode goes on with one optimizer for all: the first member's.
                first = self.inner[min(self.inner)]
                self._as_a_member(self.shape.inner).take_optimizer(first.rows, first.scalars)
        else:
            restore_optimizer_state(self.state.optimizer, self.layout, flat)
            self._further = {}
        self._further |= {f"mean_square.{member}": each for member, each in area.mean_squares.items()}

    def deliver(self) -> None:
        """Give the model the mean of the members' buffers, with which it is validated and delivered."""
        read_statistics(self._buffers, mean_statistics(self._buffers, self._taken_statistics))

    def mean_statistics(self) -> Tensor:
        """Return the mean of the members' buffers as they are now."""
        return mean_statistics(self._buffers, self.statistics)

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint holds; the tensors are the live ones."""
        parts = {SHARED: self.state.shared_part()}
        for member, vector in enumerate(self._taken_statistics):
            read_statistics(self._buffers, vector)
            buffers = {name: buffer.detach().clone() for name, buffer in self.state.model.named_buffers()}
            # No generators: members seed theirs before every gradient.
            own = {"buffers": Part(buffers)}
            first = member * self.shape.group_size
            for worker in range(self.shape.group_size):
                parts[rank_part(first + worker)] = join(own)
            if self.shape.inner is not None and member in self.inner:
                # The workers of a group keep the same: its first one saves it.
                left = self.inner[member]
                vectors = dict(zip(self.shape.inner.keys, left.rows, strict=True))
                parts[rank_part(first)] = join({**own, "inner": Part(vectors, dict(left.scalars))})
        self.deliver()
        parts[SERVER] = Part(self._further, {"counts": self.counts, "scalars": self._scalars})
        return parts

    def _flat_state(self) -> FlatState:
        if not self.shape.outer:
            return flatten_optimizer_state(self.state.optimizer, self.layout, self.shape.optimizer)
        flat = FlatState.begin(self.layout.size, self.shape.optimizer)
        for key in flat.vectors:
            if (saved := self._further.get(f"outer.{key}")) is not None and saved.numel() == self.layout.size:
                flat.vectors[key].copy_(saved)
        return FlatState(flat.vectors, {**flat.scalars, **self._scalars})

    def _as_a_member(self, shape: InnerShape) -> InnerState:
        return InnerState(shape, self.state.optimizer, self.layout, self.state.model)

    def _saved_inner(self, own: Part, shape: InnerShape) -> Deposit:
        """Return what a member left; where it left nothing that fits, it begins with what all modes share."""
        if "inner" in own.values:
            saved = part_of(own, "inner")
            rows = tuple(saved.tensors[key] for key in shape.keys if key in saved.tensors)
            if len(rows) == len(shape.keys) and all(row.numel() == self.layout.size for row in rows):
                return Deposit(rows, saved.values)
        rows = tuple(self.layout.vector() for _ in shape.keys)
        return Deposit(rows, self._as_a_member(shape).leave(rows))

    def _own_statistics(self) -> Tensor:
        own = torch.empty(self.statistics_size, dtype=torch.float64)
        write_statistics(self._buffers, own)
        return own
