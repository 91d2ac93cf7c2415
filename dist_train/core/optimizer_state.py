"""An optimizer's state as tensors and JSON, and back, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dist_train.core.checkpoint import Part
from dist_train.errors import TrainingError


def flatten_optimizer(optimizer: Optimizer) -> Part:
    """Return the optimizer's state: tensors ``state.<index>.<key>``, and everything else as JSON.

    The tensors are the optimizer's own, not copies. Raises TypeError for state that JSON cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    saved = optimizer.state_dict()
    values = {
        "optimizer": type(optimizer).__name__,
        "shapes": _shapes(optimizer),
        "state": _encode(saved["state"], "state", tensors),
        "param_groups": _encode(saved["param_groups"], "param_groups", tensors),
    }
    return Part(tensors, values)


def restore_optimizer(optimizer: Optimizer, part: Part) -> None:
    """Give ``optimizer`` the state that ``flatten_optimizer`` took, settings such as ``lr`` included.

    Raises TrainingError, and changes nothing, when the state belongs to another optimizer or model.
    """
    _require_same(optimizer, part)
    tensors = part.tensors
    saved = {key: _decode(part.values[key], tensors) for key in ("state", "param_groups")}
    optimizer.load_state_dict(saved)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in saved["state"].items():
        state = optimizer.state[parameters[index]]
        for key, value in entries.items():
            loaded = state[key]
            device = loaded.device if isinstance(loaded, Tensor) else parameters[index].device
            state[key] = _as_saved(value, parameters[index], device)


def _shapes(optimizer: Optimizer) -> list[list[list[int]]]:
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _require_same(optimizer: Optimizer, part: Part) -> None:
    name, saved_name = type(optimizer).__name__, part.values["optimizer"]
    if name != saved_name:
        raise TrainingError(f"the checkpoint's optimizer is {saved_name}, this run's is {name}")
    shapes, saved_shapes = _shapes(optimizer), part.values["shapes"]
    counts, saved_counts = [len(group) for group in shapes], [len(group) for group in saved_shapes]
    if counts != saved_counts:
        raise TrainingError(
            f"the checkpoint's optimizer has groups of {saved_counts} parameters, this run's of {counts}; "
            "resume with the model and the optimizer settings it was saved with"
        )
    for number, (group, saved_group) in enumerate(zip(shapes, saved_shapes, strict=True)):
        for index, (shape, saved_shape) in enumerate(zip(group, saved_group, strict=True)):
            if shape != saved_shape:
                raise TrainingError(
                    f"optimizer group {number}, parameter {index}: the checkpoint has shape {saved_shape}, "
                    f"this run's model {shape}; resume with the model it was saved with"
                )


def _as_saved(saved: Any, parameter: Tensor, device: torch.device) -> Any:
    """Return a copy of saved state on ``device``, laid out in memory like its parameter.

    torch's ``load_state_dict`` casts to the parameter's type, shares memory with what it was given, keeps
    the layout of the file, and does not know strings.
    """
    if isinstance(saved, Tensor):
        if saved.shape != parameter.shape:
            return saved.to(device, copy=True)
        return torch.empty_like(parameter, dtype=saved.dtype, device=device, requires_grad=False).copy_(saved)
    if isinstance(saved, (list, tuple)):
        return type(saved)(_as_saved(item, parameter, device) for item in saved)
    if isinstance(saved, dict):
        return {key: _as_saved(item, parameter, device) for key, item in saved.items()}
    return saved


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` as JSON: what JSON lacks becomes an object of one key that names its kind."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        while name in tensors:
            name += "_"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict):
        pairs = [
            [_encode(key, name, {}), _encode(item, f"{name}.{key}", tensors)] for key, item in value.items()
        ]
        return {"dict": pairs}
    raise TypeError(f"optimizer {name}: a {type(value).__name__} cannot be saved without pickle")


def _decode(value: Any, tensors: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
