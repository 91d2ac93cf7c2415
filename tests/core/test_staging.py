"""Gradients are copied as they become ready, on the side; what was not is copied afterwards."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from dist_train.config.schema import SGD
from dist_train.core.flat import Layout
from dist_train.core.flat_model import FlatModel


class Recorder:
    """Stands in for a GPU's side stream: notes the order of copies and waits."""

    def __init__(self):
        self.events = []

    @contextmanager
    def after_compute(self):
        self.events.append("copy")
        yield

    def before_compute(self):
        self.events.append("meet")

    def wait(self):
        self.events.append("wait")


class Half(nn.Module):
    """Of its two layers it uses the first one, and the second one only if asked to."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, rows, both):
        rows = self.first(rows)
        return (self.second(rows) if both else rows).sum()


@pytest.fixture
def staged():
    torch.manual_seed(0)
    model, side = Half(), Recorder()
    layout = Layout.of(model, SGD(lr=0.1))
    flat = FlatModel(model, layout, layout.vector())
    flat.stage_gradients(side)
    return model, layout, flat, side


def expected(model, layout):
    out = layout.vector()
    layout.flatten({name: parameter.grad for name, parameter in model.named_parameters()}, out)
    return out


def test_a_gradient_is_whole_once_the_copies_made_beside_the_backward_pass_are_done(staged):
    model, layout, flat, side = staged
    out = layout.vector()
    for scale in (1.0, 2.0):
        side.events.clear()
        flat.expect_gradient(out)
        model(torch.full((2, 3), scale), both=True).backward()
        assert torch.equal(out, expected(model, layout))
        flat.gradient_into(out)
        assert side.events == ["copy"] * 4 + ["wait"]
        model.zero_grad()


def test_parameters_without_a_gradient_count_as_zero(staged):
    model, layout, flat, side = staged
    out = torch.full((layout.size,), 7.0)
    flat.expect_gradient(out)
    model(torch.ones(2, 3), both=False).backward()
    flat.gradient_into(out)
    assert side.events == ["copy"] * 2 + ["wait"]
    views, right = layout.views(out), layout.views(expected(model, layout))
    assert all(torch.equal(views[name], right[name]) for name in layout.names)


def test_a_backward_pass_that_nobody_expects_copies_nothing(staged):
    model, layout, flat, side = staged
    model(torch.ones(2, 3), both=True).backward()
    out = layout.vector()
    flat.gradient_into(out)
    assert side.events == []
    assert torch.equal(out, expected(model, layout))


def test_a_gradient_that_is_wanted_elsewhere_is_copied_there(staged):
    model, layout, flat, side = staged
    flat.expect_gradient(layout.vector())
    model(torch.ones(2, 3), both=True).backward()
    out = layout.vector()
    flat.gradient_into(out)
    assert torch.equal(out, expected(model, layout))
    # What is still being copied must not lose its source.
    assert side.events[-1] == "wait"
