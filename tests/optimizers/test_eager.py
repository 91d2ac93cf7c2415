from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from dist_train.optimizers.eager import eager
from dist_train.optimizers.lars import LARS

KINDS = {
    torch.optim.SGD: {"momentum": 0.9, "weight_decay": 0.1},
    torch.optim.Adagrad: {},
    torch.optim.RMSprop: {},
    torch.optim.Adam: {},
    torch.optim.AdamW: {},
    LARS: {},
}
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)

STEPS = """
import sys, torch
from torch import nn
from dist_train import optimizers
from dist_train.config import schema

for settings in (schema.SGD, schema.Adagrad, schema.RMSProp, schema.Adam, schema.AdamW, schema.LARS):
    model = nn.Linear(3, 2)
    optimizer = optimizers.build(model, settings(lr=0.1))
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def test_the_compiler_is_not_imported_for_any_optimizer():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@every_kind
def test_it_does_what_torchs_own_does(kind):
    model = nn.Linear(3, 2)
    other = copy.deepcopy(model)
    options = {"lr": 0.1, **KINDS[kind]}
    own, its = kind(other.parameters(), **options), eager(kind)(model.parameters(), **options)
    for number in range(3):
        for network, optimizer in ((other, own), (model, its)):
            network(torch.full((2, 3), float(number + 1))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, two in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert own.state_dict()["param_groups"] == its.state_dict()["param_groups"]


@every_kind
def test_it_is_of_torchs_own_kind_and_calls_hooks(kind):
    weight = nn.Parameter(torch.ones(2))
    its = eager(kind)([weight], lr=0.1)
    assert isinstance(its, kind)
    assert type(its).__name__ == kind.__name__
    steps = []
    its.register_step_post_hook(lambda *_: steps.append(1))
    weight.grad = torch.ones(2)
    its.step()
    assert steps == [1]
    assert (weight != 1.0).all()
