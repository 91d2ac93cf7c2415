"""Tests of a model over one vector: what travels to a server and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dist_train.config.schema import SGD
from dist_train.core.flat import Layout
from dist_train.core.flat_model import (
    FlatModel,
    mean_statistics,
    read_statistics,
    statistics_of,
    statistics_size,
    write_statistics,
)
from dist_train.errors import TrainingError


def network(channels_last=False):
    """A model with tied and frozen weights, buffers and, if ``channels_last``, weights not row-major."""
    torch.manual_seed(0)
    head = nn.Linear(4, 6, bias=False)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), head, nn.Linear(6, 4), nn.Linear(4, 6)
    )
    model[5].weight = head.weight
    model[4].requires_grad_(False)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def flat(model):
    layout = Layout.of(model, SGD(lr=0.1))
    return FlatModel(model, layout, layout.vector())


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def step(model):
    model(torch.randn(5, 3, 2, 2)).square().sum().backward()


both_formats = pytest.mark.parametrize("channels_last", [False, True])


class TestParameters:
    @both_formats
    def test_the_vector_begins_with_the_model_s(self, channels_last):
        model = network(channels_last)
        before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
        made = flat(model)
        for name, view in made.layout.views(made.vector).items():
            assert torch.equal(view, before[name])
            assert torch.equal(trainable(model)[name], before[name])

    @both_formats
    def test_what_is_written_to_the_host_arrives_in_the_model(self, channels_last):
        model = network(channels_last)
        made = flat(model)
        made.host.copy_(torch.arange(made.layout.size))
        made.arrived()
        for name, view in made.layout.views(torch.arange(made.layout.size).float()).items():
            assert torch.equal(trainable(model)[name], view)

    @both_formats
    def test_what_the_model_s_own_steps_made_is_collected(self, channels_last):
        model = network(channels_last)
        made = flat(model)
        optimizer = torch.optim.SGD(trainable(model).values(), 0.1)
        step(model)
        optimizer.step()
        for name, view in made.layout.views(made.collect()).items():
            assert torch.equal(view, trainable(model)[name])

    def test_frozen_parameters_stay_where_they_are(self):
        model = network()
        before = model[4].weight.data_ptr()
        made = flat(model)
        assert "4.weight" not in made.layout.names
        assert model[4].weight.data_ptr() == before

    def test_tied_parameters_stay_tied(self):
        model = network()
        made = flat(model)
        made.host.fill_(2.0)
        made.arrived()
        assert model[3].weight is model[5].weight
        assert (model[5].weight == 2.0).all()


class TestSharedMemory:
    """A model that computes on memory which is the server's."""

    @both_formats
    def test_it_computes_on_the_memory_itself_and_never_changes_it(self, channels_last):
        model = network(channels_last)
        made = flat(model)
        shared = torch.randn(made.layout.size)
        before = shared.clone()
        made.compute_on(shared)
        step(model)
        made.gradient_into(made.layout.vector())
        for name, view in made.layout.views(shared).items():
            assert torch.equal(trainable(model)[name], view)
            is_inside = trainable(model)[name].data_ptr() == view.data_ptr()
            assert is_inside == trainable(model)[name].is_contiguous()
        assert torch.equal(shared, before)

    @both_formats
    def test_what_arrives_in_its_own_memory_leaves_the_shared_one_alone(self, channels_last):
        model = network(channels_last)
        made = flat(model)
        shared = torch.randn(made.layout.size)
        before = shared.clone()
        made.compute_on(shared)
        made.host.fill_(3.0)
        made.arrived()
        for parameter in trainable(model).values():
            assert (parameter == 3.0).all()
        assert torch.equal(shared, before)

    def test_gradients_are_those_of_a_copy_bit_for_bit(self):
        found = []
        for shares in (False, True):
            model = network()
            made = flat(model)
            vector = torch.linspace(-1, 1, made.layout.size)
            if shares:
                made.compute_on(vector)
            else:
                made.host.copy_(vector)
                made.arrived()
            torch.manual_seed(1)
            step(model)
            found.append(made.layout.vector())
            made.gradient_into(found[-1])
        assert torch.equal(*found)

    def test_nothing_is_shared_before_a_gradient_was_watched(self):
        made = flat(network())
        assert not made.may_be_shared()
        made.watch()
        made.arrived()
        assert not made.may_be_shared()

    def test_a_model_whose_task_only_reads_may_be_shared_from_then_on(self):
        model = network()
        made = flat(model)
        made.watch()
        step(model)
        assert made.may_be_shared()
        for _ in range(3):
            made.compute_on(made.layout.vector())
            step(model)
            assert made.may_be_shared()

    @pytest.mark.parametrize("write", [lambda p: p.detach().mul_(2.0), lambda p: p.data.mul_(2.0)])
    def test_one_whose_task_writes_is_never_shared(self, write):
        model = network()
        made = flat(model)
        made.watch()
        write(model[5].bias)
        assert not made.may_be_shared()
        made.arrived()
        made.watch()
        assert not made.may_be_shared()

    def test_a_write_to_shared_memory_is_an_error(self):
        model = network()
        made = flat(model)
        made.watch()
        assert made.may_be_shared()
        made.compute_on(made.layout.vector())
        with torch.no_grad():
            model[5].bias.clamp_(0.0, 1.0)
        with pytest.raises(TrainingError, match=r"5\.bias was written to while a gradient was computed"):
            made.may_be_shared()

    def test_what_is_written_to_memory_of_its_own_is_nobody_s_matter(self):
        model = network()
        made = flat(model)
        made.watch()
        assert made.may_be_shared()
        made.compute_on(made.layout.vector())
        made.arrived()
        with torch.no_grad():
            model[5].bias.clamp_(0.0, 1.0)
        assert made.may_be_shared()


class TestGradients:
    @both_formats
    def test_they_are_written_in_the_layout_s_order(self, channels_last):
        model = network(channels_last)
        made, out = flat(model), torch.full((1000,), 7.0)
        step(model)
        made.gradient_into(out[: made.layout.size])
        for name, view in made.layout.views(out[: made.layout.size]).items():
            assert torch.equal(view, trainable(model)[name].grad)
        assert (out[made.layout.size :] == 7.0).all()

    def test_they_are_weighted_and_added(self):
        model = network()
        made = flat(model)
        out = made.layout.vector()
        step(model)
        made.gradient_into(out, weight=0.25)
        made.gradient_into(out, weight=0.5, add=True)
        for name, view in made.layout.views(out).items():
            torch.testing.assert_close(view, 0.75 * trainable(model)[name].grad)

    @pytest.mark.parametrize("weight", [1.0, 0.25])
    def test_one_that_is_not_finite_is_told_of_until_it_is_overwritten(self, weight):
        model = network()
        made = flat(model)
        out = made.layout.vector()
        step(model)
        last = made.layout.parameters[-1]
        trainable(model)[last.name].grad.view(-1)[-1] = float("nan")
        assert not made.gradient_into(out, weight=weight)
        model.zero_grad()
        step(model)
        # Added to what is there, which still holds it.
        assert not made.gradient_into(out, weight=weight, add=True)
        assert made.gradient_into(out, weight=weight)

    def test_only_a_share_that_is_not_finite_is_told_of(self):
        model = network()
        made = flat(model)
        out = made.layout.vector()
        step(model)
        first = made.layout.parameters[0]
        trainable(model)[first.name].grad.view(-1)[0] = float("inf")
        assert made.gradient_into(out, slice(1, 3))
        assert not made.gradient_into(out, slice(0, 1))
        assert made.gradient_into(out, slice(0, 0))

    def test_a_share_leaves_the_rest_alone(self):
        model = network()
        made = flat(model)
        out = torch.full((made.layout.size,), 7.0)
        step(model)
        made.gradient_into(out, slice(1, 3))
        for number, placed in enumerate(made.layout.parameters):
            view = placed.view(out)
            expected = trainable(model)[placed.name].grad if number in (1, 2) else torch.full_like(view, 7.0)
            assert torch.equal(view, expected)

    def test_a_parameter_without_one_counts_as_zero(self):
        model = network()
        made = flat(model)
        out = torch.full((made.layout.size,), 7.0)
        made.gradient_into(out)
        for view in made.layout.views(out).values():
            assert not view.any()
        out.fill_(7.0)
        made.gradient_into(out, weight=0.5, add=True)
        assert (out == 7.0).all()


class TestStatistics:
    def test_they_travel_there_and_back_exactly(self):
        model, other = network(), network()
        for _ in range(3):
            step(model)
        made, second = flat(model), flat(other)
        vector = torch.empty(made.statistics_size, dtype=torch.float64)
        made.statistics_into(vector)
        second.take_statistics(vector)
        for name, buffer in other.named_buffers():
            assert torch.equal(buffer, dict(model.named_buffers())[name]), name
        assert other[1].num_batches_tracked == 3

    def test_buffers_that_no_checkpoint_keeps_stay_at_home(self):
        model = network()
        model.register_buffer("cache", torch.zeros(100), persistent=False)
        assert statistics_size(statistics_of(model)) == 4 + 4 + 1

    def test_a_model_without_any_has_none(self):
        assert flat(nn.Linear(3, 2)).statistics_size == 0

    def test_the_mean_is_over_members_and_counts_are_the_first_one_s(self):
        model = network()
        buffers = statistics_of(model)
        vectors = [
            torch.full((statistics_size(buffers),), value, dtype=torch.float64) for value in (2.0, 5.0)
        ]
        read_statistics(buffers, mean_statistics(buffers, vectors))
        assert (model[1].running_mean == 3.5).all()
        assert (model[1].running_var == 3.5).all()
        assert model[1].num_batches_tracked == 2

    def test_large_counts_are_exact(self):
        buffers = [torch.tensor(2**53 - 1)]
        vector = torch.empty(1, dtype=torch.float64)
        write_statistics(buffers, vector)
        buffers[0].zero_()
        read_statistics(buffers, vector)
        assert buffers[0] == 2**53 - 1
