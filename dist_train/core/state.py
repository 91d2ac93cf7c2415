"""The state of a replica in its three parts, and how each travels through a checkpoint.

*Learnt*: parameters, buffers, optimizer. *Chosen*: settings that the run itself made, here the rate after
scaling and the climbs to it. *Counted*: updates, samples, position in the data. Restoring takes all
three; adopting another replica's weights would take the learnt part alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dist_train import __version__
from dist_train.config import Config, flatten
from dist_train.core.checkpoint import Part
from dist_train.core.optimizer_state import flatten_optimizer, restore_optimizer
from dist_train.core.seeds import generator_states, restore_generators
from dist_train.errors import ConfigError, TrainingError
from dist_train.exchange.handshake import Facts
from dist_train.rules.sampling import BEGINNING, Cursor, Position, Run
from dist_train.rules.schedule import Rewarm
from dist_train.task import Task


@dataclass
class Counted:
    updates: int = 0
    samples: int = 0
    position: Position = BEGINNING
    # Dealt before ``position`` and not trained: a server deals samples before it counts them.
    unfinished: tuple[Run, ...] = ()
    # The order of the samples, in which ``position`` has a meaning; None before the first step.
    seed: int | None = None
    train_size: int | None = None
    # A validation was due at this update and has not come to its end.
    owes_validation: bool = False
    # What a parameter server had counted, for the next one, and the cursor by then.
    carried: dict[str, Any] = field(default_factory=dict)

    @property
    def cursor(self) -> Cursor:
        """Where training goes on in the data."""
        return Cursor(self.position, self.unfinished)

    @cursor.setter
    def cursor(self, cursor: Cursor) -> None:
        self.position, self.unfinished = cursor.position, cursor.unfinished


@dataclass
class Chosen:
    """``rate`` is the learning rate of the next update, ``batch`` the samples of one step at that rate."""

    rate: float | None = None
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
        model = self.tensors()
        # Buffers may well hold infinities, such as a causal mask; parameters never should.
        parameters = frozenset(name for name, _ in self.model.named_parameters())
        return join(
            {
                "model": Part(model, finite=parameters & model.keys()),
                "optimizer": flatten_optimizer(self.optimizer),
                "chosen": Part(values=asdict(self.chosen)),
                "counted": Part(values=asdict(self.counted)),
            }
        )

    def own_part(self) -> Part:
        """Return what this worker alone holds: its generators and its buffers (batch-norm statistics)."""
        tensors, values = generator_states(self.device)
        buffers = {name: buffer.detach() for name, buffer in self.model.named_buffers()}
        return join({"generators": Part(tensors, values), "buffers": Part(buffers)})

    def restore_shared(self, part: Part) -> None:
        """Take all three parts; raises ConfigError where the checkpoint is of another model."""
        try:
            self._restore_learnt(part)
        except TrainingError as error:
            # Another model or optimizer than the checkpoint's is a wrong configuration.
            raise ConfigError(str(error)) from error
        counted, chosen = part_of(part, "counted").values, part_of(part, "chosen").values
        position = Position(**counted["position"])
        # Checkpoints of older versions know of no unfinished runs.
        unfinished = tuple(Run(**run) for run in counted.get("unfinished", ()))
        self.counted = Counted(**{**counted, "position": position, "unfinished": unfinished})
        rewarms = tuple(Rewarm(**rewarm) for rewarm in chosen["rewarms"])
        self.chosen = Chosen(chosen["rate"], chosen["batch"], rewarms)

    def _restore_learnt(self, part: Part) -> None:
        load_tensors(self.tensors(), part_of(part, "model").tensors)
        # Settings such as weight decay are the configuration's, not the checkpoint's.
        settings = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        restore_optimizer(self.optimizer, part_of(part, "optimizer"))
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)

    def restore_own(self, part: Part, generators: bool) -> bool:
        """Take a worker's buffers and, if ``generators``, its random states; return whether it took those.

        A part saved in a server mode holds none: there they are seeded before every gradient.
        """
        load_tensors(dict(self.model.named_buffers()), part_of(part, "buffers").tensors)
        if not generators or "generators" not in part.values:
            return False
        states = part_of(part, "generators")
        restore_generators(states.tensors, states.values, self.device)
        return True


def join(parts: Mapping[str, Part]) -> Part:
    """Make one part of several, each under its name: tensor ``weight`` of ``model`` is ``model.weight``."""
    return Part(
        tensors={
            f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.tensors.items()
        },
        values={name: dict(part.values) for name, part in parts.items()},
        finite=frozenset(f"{name}.{key}" for name, part in parts.items() for key in part.finite),
    )


def part_of(joined: Part, name: str) -> Part:
    """Return the part that ``join`` was given under ``name``; KeyError when there is none."""
    tensors = {key: tensor for key, tensor in joined.tensors.items() if key.startswith(f"{name}.")}
    return Part(
        {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items()}, joined.values[name]
    )


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers under their first name."""
    by_identity: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            by_identity.setdefault(id(tensor), (name, tensor.detach()))
    return dict(by_identity.values())


def load_tensors(targets: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
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


def describe(values: dict[str, Tensor]) -> dict[str, str]:
    """Return 'dtype shape' by name: what workers compare before their first collective."""
    return {
        name: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in values.items()
    }


def placed_model(task: Task, config: Config, device: torch.device) -> nn.Module:
    """Make the task's model on ``device``, in the memory format of the configuration."""
    memory_format = torch.channels_last if config.train.channels_last else torch.preserve_format
    model: nn.Module = task.model().to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    return model


def facts_of(config: Config, state: State) -> Facts:
    """Collect what the workers of a group must have alike before their first collective."""
    return {
        "configuration": flatten(config),
        "parameter": describe(state.tensors()),
        "version of": {"dist_train": __version__, "torch": torch.__version__},
    }
