"""An optimizer that takes another's state goes on exactly as the other would have."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dist_train.core.checkpoint import Part
from dist_train.core.optimizer_state import flatten_optimizer, restore_optimizer
from dist_train.core.tensor_files import read_tensors, snapshot, write_tensors
from dist_train.errors import TrainingError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.1),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).to(
        memory_format=torch.channels_last
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step))

        def closure(inputs: torch.Tensor = inputs) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def through_disk(part: Part, tmp_path) -> Part:
    write_tensors(tmp_path / "o.safetensors", snapshot(part.tensors))
    return Part(read_tensors(tmp_path / "o.safetensors"), json.loads(json.dumps(part.values)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_for_bit(name, tmp_path):
    model = network()
    parameters = list(model.parameters())
    optimizer = OPTIMIZERS[name](parameters)
    train(model, optimizer, range(3))
    restored = network()
    restored.load_state_dict(model.state_dict())
    other = OPTIMIZERS[name](list(restored.parameters()))
    restore_optimizer(other, through_disk(flatten_optimizer(optimizer), tmp_path))
    train(model, optimizer, range(3, 6))
    train(restored, other, range(3, 6))
    for expected, found in zip(parameters, restored.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_settings_and_their_kinds_survive(tmp_path):
    model = network()
    optimizer = torch.optim.Adam(
        [{"params": model[0].parameters(), "betas": (0.5, 0.75)}, {"params": model[2].parameters()}], lr=0.3
    )
    train(model, optimizer, range(1))
    other = torch.optim.Adam([{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    restore_optimizer(other, through_disk(flatten_optimizer(optimizer), tmp_path))
    assert [group["betas"] for group in other.param_groups] == [(0.5, 0.75), (0.9, 0.999)]
    assert [group["lr"] for group in other.param_groups] == [0.3, 0.3]


class Odd(torch.optim.Optimizer):
    """State of every kind that torch's own loading would change."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 1.0})

    def step(self, closure=None) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {
                "master": parameter.detach().float() + 1e-4,
                "phase": "warm",
                "pair": (1, torch.ones(2)),
                "none": None,
                "nested": {3: [torch.zeros(1), 2.5]},
                "count": 7,
            }


def test_types_strings_and_nested_state_come_back_as_they_were(tmp_path):
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer, other = Odd([weight]), Odd([weight])
    optimizer.step()
    restore_optimizer(other, through_disk(flatten_optimizer(optimizer), tmp_path))
    state = other.state[weight]
    assert state["master"].dtype == torch.float32
    assert torch.equal(state["master"], optimizer.state[weight]["master"])
    assert (state["phase"], state["none"], state["count"]) == ("warm", None, 7)
    assert isinstance(state["pair"], tuple)
    assert state["nested"][3][1] == 2.5


def test_restored_state_shares_no_memory_and_follows_the_layout_of_its_parameter():
    model = network()
    optimizer = OPTIMIZERS["momentum"](list(model.parameters()))
    train(model, optimizer, range(1))
    part = flatten_optimizer(optimizer)
    part = Part(snapshot(part.tensors), part.values)
    other = OPTIMIZERS["momentum"](list(model.parameters()))
    restore_optimizer(other, part)
    weight = model[0].weight
    buffer = other.state[weight]["momentum_buffer"]
    assert buffer.stride() == weight.stride() != part.tensors["state.0.momentum_buffer"].stride()
    bias_buffer = other.state[model[0].bias]["momentum_buffer"]
    assert bias_buffer.data_ptr() != part.tensors["state.1.momentum_buffer"].data_ptr()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: torch.optim.Adam(network().parameters()),
            "checkpoint's optimizer is SGD, this run's is Adam",
        ),
        (
            lambda: torch.optim.SGD(network()[0].parameters(), lr=1),
            r"groups of \[4\] parameters, .* of \[2\]",
        ),
        (
            lambda: torch.optim.SGD([p.T if p.dim() == 2 else p for p in map(torch.clone, tensors())], lr=1),
            r"group 0, parameter 2: the checkpoint has shape \[2, 12\], this run's model \[12, 2\]",
        ),
    ],
)
def test_state_of_another_optimizer_is_refused_and_changes_nothing(make, message):
    model = network()
    optimizer = OPTIMIZERS["momentum"](list(model.parameters()))
    train(model, optimizer, range(1))
    other = make()
    with pytest.raises(TrainingError, match=message):
        restore_optimizer(other, flatten_optimizer(optimizer))
    assert not other.state


def tensors() -> list[torch.Tensor]:
    return [parameter.detach() for parameter in network().parameters()]


def test_state_that_only_pickle_could_hold_is_refused_by_name():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimizer.state[weight]["hook"] = object()
    with pytest.raises(TypeError, match=r"optimizer state\.0\.hook: a object cannot be saved"):
        flatten_optimizer(optimizer)
