"""A member with local steps keeps its optimizer's state and, in elastic averaging, its parameters."""

from __future__ import annotations

import pytest
import torch
from server_runs import config_of
from torch import nn

from dist_train import optimizers
from dist_train.config.schema import SGD, AdamW
from dist_train.core.flat import Layout
from dist_train.core.inner_state import PARAMETERS, InnerShape, InnerState, kept_vectors


class Kept:
    """A model with its optimizer, and the rows of one deposit."""

    def __init__(self, settings, elastic=False, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Linear(5, 3)
        self.optimizer = optimizers.build(self.model, settings)
        self.layout = Layout.of(self.model, settings)
        shape = InnerShape(settings, elastic)
        self.keys = shape.keys
        self.state = InnerState(shape, self.optimizer, self.layout, self.model)
        self.rows = [self.layout.vector() for _ in shape.keys]

    def step(self, seed):
        gradients = torch.Generator().manual_seed(seed)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=gradients)
        self.optimizer.step()

    def weights(self):
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.model.parameters()])


@pytest.mark.parametrize("settings", [SGD(lr=0.1, momentum=0.9), AdamW(lr=0.1, amsgrad=True)])
def test_the_optimizer_goes_on_as_if_it_had_never_changed_hands(settings):
    one, other = Kept(settings), Kept(settings, seed=0)
    for seed in range(3):
        one.step(seed)
    with torch.no_grad():
        for parameter, same in zip(other.model.parameters(), one.model.parameters(), strict=True):
            parameter.copy_(same)
    other.state.take(one.rows, one.state.leave(one.rows))
    for kept in (one, other):
        kept.step(7)
    assert torch.equal(one.weights(), other.weights())


def test_parameters_change_hands_in_elastic_averaging_alone():
    settings = SGD(lr=0.1, momentum=0.9)
    for elastic in (False, True):
        one, other = Kept(settings, elastic, seed=1), Kept(settings, elastic, seed=2)
        other.state.take(one.rows, one.state.leave(one.rows))
        assert torch.equal(one.weights(), other.weights()) == elastic
        assert (PARAMETERS in one.keys) == elastic


def test_one_that_has_made_no_step_leaves_the_state_that_all_begin_with():
    kept = Kept(AdamW(lr=0.1))
    assert kept.state.leave(kept.rows) == {"step": 0}
    assert all(not row.any() for row in kept.rows)


@pytest.mark.parametrize(
    ("parallel", "vectors"),
    [
        ({"mode": "async"}, 0),
        ({"mode": "bounded", "max_staleness": 0, "local_steps": 2}, 2),
        ({"mode": "async", "local_steps": 2, "outer": {"kind": "elastic"}}, 3),
    ],
)
def test_nothing_is_kept_without_steps_of_ones_own(parallel, vectors):
    config = config_of(parallel={"workers": 2, **parallel}, optimizer={"name": "adamw", "lr": 0.1})
    assert kept_vectors(config) == vectors
