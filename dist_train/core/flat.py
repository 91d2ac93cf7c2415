"""A model's trainable parameters, and its optimizer's state, as flat vectors.

What a parameter server cuts into slices: one float32 vector for the parameters, one for the gradient, and
one for every kind of number that the optimizer keeps for each parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dist_train import optimizers
from dist_train.config import schema
from dist_train.errors import TrainingError
from dist_train.rules.slices import GRAIN


@dataclass(frozen=True)
class Placed:
    """One parameter's place in the vector: elements ``start`` to ``stop``, in row-major order."""

    name: str
    group: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    def view(self, vector: Tensor) -> Tensor:
        """Return this parameter's share of a whole vector, in its shape and row-major, sharing memory."""
        return vector[self.start : self.stop].view(self.shape)


@dataclass(frozen=True)
class Layout:
    """Where each trainable parameter lies in a vector of ``size`` elements.

    The parameters are ordered optimizer group by optimizer group, in the model's order within a group, and
    tied ones stand there once. Each starts at a multiple of ``GRAIN`` elements; the padding between them
    is zero in new vectors and never touched.
    """

    parameters: tuple[Placed, ...]
    size: int

    @classmethod
    def of(cls, model: nn.Module, settings: schema.AnyOptimizer) -> Layout:
        """Lay out what ``settings``' optimizer trains.

        Raises TrainingError if that is nothing, or not all of it float32.
        """
        names = {parameter: name for name, parameter in model.named_parameters()}
        placed: list[Placed] = []
        end = 0
        for group in optimizers.parameter_groups(model, settings):
            for parameter in group["params"]:
                placed.append(Placed(names[parameter], group["name"], tuple(parameter.shape), end))
                end += -(-parameter.numel() // GRAIN) * GRAIN
        if not end:
            raise TrainingError("the model has no trainable parameters: check its requires_grad flags")
        _require_float32(model)
        return cls(tuple(placed), end)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(placed.name for placed in self.parameters)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each parameter starts: the cuts that leave every parameter whole."""
        return tuple(placed.start for placed in self.parameters)

    def vector(self) -> Tensor:
        """Return a new vector of zeros."""
        return torch.zeros(self.size)

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Return every parameter's view of a whole vector, by name; ValueError if it is not of this size."""
        if vector.shape != (self.size,) or vector.dtype != torch.float32:
            raise ValueError(
                f"expected {self.size} elements of float32, not shape {list(vector.shape)} of {vector.dtype}"
            )
        return {placed.name: placed.view(vector) for placed in self.parameters}

    @torch.no_grad()
    def flatten(self, tensors: Mapping[str, Tensor | None], out: Tensor) -> None:
        """Copy tensors, by name and in any memory format, into the vector ``out``; None leaves zeros."""
        for name, view in self.views(out).items():
            tensor = tensors[name]
            if tensor is None:
                view.zero_()
            else:
                view.copy_(tensor)

    @torch.no_grad()
    def unflatten(self, vector: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Copy a vector into tensors, by name, which keep their memory format."""
        for name, view in self.views(vector).items():
            tensors[name].copy_(view)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Layout:
        placed = (Placed(**{**each, "shape": tuple(each["shape"])}) for each in saved["parameters"])
        return cls(tuple(placed), saved["size"])


@dataclass(frozen=True)
class FlatState:
    """An optimizer's state over a layout, or over a slice of it.

    ``vectors`` hold a number for each element of the parameters, ``scalars`` one for all of them: Adam has
    exp_avg and exp_avg_sq in the former and step in the latter.
    """

    vectors: dict[str, Tensor]
    scalars: dict[str, float]

    @classmethod
    def begin(cls, size: int, settings: schema.AnyOptimizer) -> FlatState:
        """Return the state that an optimizer has before its first step, over ``size`` elements."""
        vectors, scalars = _beginning(settings)
        return cls({key: torch.full((size,), value) for key, value in vectors.items()}, scalars)

    def part(self, part: range) -> FlatState:
        """Return a window on a slice of this state: what is written to it is written here."""
        vectors = {key: vector[part.start : part.stop] for key, vector in self.vectors.items()}
        return FlatState(vectors, self.scalars)


def state_keys(settings: schema.AnyOptimizer) -> tuple[str, ...]:
    """Return the names of the vectors of state that an optimizer of these settings keeps."""
    return tuple(_beginning(settings)[0])


def flatten_optimizer_state(
    optimizer: torch.optim.Optimizer, layout: Layout, settings: schema.AnyOptimizer
) -> FlatState:
    """Return a copy of the state of a whole model's optimizer, as ``optimizers.build`` makes it.

    A parameter that has no state yet counts as one that is about to begin. Where the parameters have
    taken different numbers of steps, as those without a gradient do, the state has the largest.
    """
    flat = FlatState.begin(layout.size, settings)
    for placed, parameter in _paired(layout, optimizer):
        state = optimizer.state.get(parameter, {})
        for key in flat.vectors.keys() & state.keys():
            placed.view(flat.vectors[key]).copy_(state[key])
        for key in flat.scalars.keys() & state.keys():
            flat.scalars[key] = max(flat.scalars[key], float(state[key]))
    return flat


def restore_optimizer_state(optimizer: torch.optim.Optimizer, layout: Layout, flat: FlatState) -> None:
    """Give a whole model's optimizer a copy of the state that ``flatten_optimizer_state`` returns."""
    # torch keeps the counts of steps on the CPU, unless the step itself reads them on the device.
    beside = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for placed, parameter in _paired(layout, optimizer):
        state = optimizer.state[parameter]
        for key, value in flat.scalars.items():
            state[key] = torch.tensor(value, device=parameter.device if beside else "cpu")
        for key, vector in flat.vectors.items():
            if key not in state:
                state[key] = torch.empty_like(parameter, requires_grad=False)
            state[key].copy_(placed.view(vector))


def _paired(layout: Layout, optimizer: torch.optim.Optimizer) -> list[tuple[Placed, Tensor]]:
    """Pair the layout with the optimizer's parameters: both are in the order of the groups."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shapes = [tuple(parameter.shape) for parameter in parameters]
    if shapes != [placed.shape for placed in layout.parameters]:
        raise ValueError("the optimizer's parameters are not those of the layout")
    return list(zip(layout.parameters, parameters, strict=True))


def _beginning(settings: schema.AnyOptimizer) -> tuple[dict[str, float], dict[str, float]]:
    """Return the names and first values of an optimizer's vectors and scalars of state.

    They are asked of the optimizer itself: a step on zeros with a gradient of zeros leaves its vectors as
    they begin.
    """
    probe = torch.zeros(2)
    probe.grad = torch.zeros(2)
    optimizer = optimizers.over([{"params": [probe]}], settings)
    optimizer.step()
    state = optimizer.state[probe]
    vectors = {key: float(value[0]) for key, value in state.items() if value.shape == probe.shape}
    return vectors, {key: 0.0 for key in state if key not in vectors}


def _require_float32(model: nn.Module) -> None:
    others = [
        f"{name} ({str(parameter.dtype).removeprefix('torch.')})"
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dtype != torch.float32
    ]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise TrainingError(
            f"a parameter server trains float32 parameters alone, not {', '.join(others[:3])}{more}: "
            "make the model float32 (train.precision sets the type of the computation) or use mode sync"
        )
