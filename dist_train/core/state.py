"""The state of a replica in its three parts, and how each travels through a checkpoint.

*Learnt*: parameters, buffers, optimizer. *Chosen*: settings that the run itself made, here the rate after
scaling and the climbs to it. *Counted*: updates, samples, position in the data. Restoring takes all
three; adopting another replica's weights would take the learnt part alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.core.checkpoint import Part, flatten_optimizer, restore_optimizer
from dist_train.core.seeds import generator_states, restore_generators
from dist_train.errors import TrainingError
from dist_train.rules.sampling import Position
from dist_train.rules.schedule import Rewarm


@dataclass
class Counted:
    updates: int = 0
    samples: int = 0
    position: Position = Position(0, 0)


@dataclass
class Chosen:
    """``peak`` and ``batch`` are None until the first plan is made."""

    peak: float | None = None
    batch: int | None = None
    rewarms: tuple[Rewarm, ...] = ()


@dataclass
class State:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    counted: Counted = field(default_factory=Counted)
    chosen: Chosen = field(default_factory=Chosen)

    def tensors(self) -> dict[str, Tensor]:
        """Return the model's parameters and buffers by name, tied ones once."""
        return unique_tensors(self.model)

    def shared_part(self) -> Part:
        """Return what all workers hold alike: learnt, chosen and counted. The tensors are the live ones."""
        optimizer = flatten_optimizer(self.optimizer)
        tensors = {f"model.{name}": tensor for name, tensor in self.tensors().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer.tensors.items()}
        values = {
            "optimizer": optimizer.values,
            "chosen": asdict(self.chosen),
            "counted": asdict(self.counted),
        }
        return Part(tensors, values)

    def own_part(self) -> Part:
        """Return what this worker alone holds: its generators and its buffers (batch-norm statistics)."""
        tensors, values = generator_states(self.device)
        tensors = {f"generator.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {f"buffer.{name}": buffer for name, buffer in self.model.named_buffers()}
        return Part(tensors, {"generators": values})

    def restore_shared(self, part: Part) -> None:
        """Take all three parts; raises TrainingError where the checkpoint is of another model."""
        load_tensors(self.tensors(), with_prefix(part.tensors, "model."))
        optimizer = Part(with_prefix(part.tensors, "optimizer."), part.values["optimizer"])
        restore_optimizer(self.optimizer, optimizer)
        counted, chosen = part.values["counted"], part.values["chosen"]
        position = Position(**counted["position"])
        self.counted = Counted(counted["updates"], counted["samples"], position)
        rewarms = tuple(Rewarm(**rewarm) for rewarm in chosen["rewarms"])
        self.chosen = Chosen(chosen["peak"], chosen["batch"], rewarms)

    def restore_own(self, part: Part) -> None:
        """Take this worker's generators and buffers."""
        load_tensors(dict(self.model.named_buffers()), with_prefix(part.tensors, "buffer."))
        generators = with_prefix(part.tensors, "generator.")
        restore_generators(generators, part.values["generators"], self.device)


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers under their first name."""
    by_identity: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            by_identity.setdefault(id(tensor), (name, tensor.detach()))
    return dict(by_identity.values())


def load_tensors(targets: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Copy ``saved`` into ``targets`` in place; every name and shape must match."""
    missing, surplus = sorted(targets.keys() - saved.keys()), sorted(saved.keys() - targets.keys())
    if missing or surplus:
        raise TrainingError(
            f"the checkpoint is of another model: it lacks {missing[:3] or 'nothing'} and has in addition "
            f"{surplus[:3] or 'nothing'}; resume with the model it was made from, or give another --run-dir"
        )
    for name, target in targets.items():
        if target.shape != saved[name].shape:
            raise TrainingError(
                f"the checkpoint is of another model: {name} has shape {tuple(saved[name].shape)} there and "
                f"{tuple(target.shape)} here; resume with the model it was made from"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def describe(values: dict[str, Tensor]) -> dict[str, str]:
    """Return 'dtype shape' by name: what workers compare before their first collective."""
    return {
        name: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in values.items()
    }
