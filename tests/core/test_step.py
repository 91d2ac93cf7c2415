"""The two halves of a step: whose gradient is computed, with which weight, and how it is applied."""

from __future__ import annotations

import random
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dist_train.core.seeds import seed_all
from dist_train.core.step import GradientHalf, Numerics, UpdateHalf, outputs_of
from dist_train.core.timing import StepClock
from dist_train.couplings import Started
from dist_train.task import Task

CPU = torch.device("cpu")
Pair = namedtuple("Pair", ["inputs", "classes"])


class MeanOfProducts(Task):
    """The loss is the mean of weight times input, so that its gradient is the mean of the inputs."""

    def model(self):
        return nn.Linear(1, 1, bias=False)

    train_data = validation_data = None

    def loss(self, model, batch):
        predictions = model(batch)
        return predictions.mean(), predictions


class Bench:
    """A gradient half over a model of one weight, and what its surroundings saw of it."""

    def __init__(self, model: nn.Module) -> None:
        self.is_local = False
        self.shares: list[float] = []
        self.passes: list[tuple[str, bool]] = []
        self.phases: list[str] = []
        model.register_forward_hook(lambda *_: self.passes.append(("forward", self.is_local)))
        weight = next(model.parameters())
        weight.register_hook(lambda _: self.passes.append(("backward", self.is_local)))
        clock = StepClock(model, CPU)
        started = Started(model, self.local)
        self.half = GradientHalf(MeanOfProducts(), started, self, Numerics(CPU), clock, self.phases.append)

    @contextmanager
    def local(self):
        self.is_local = True
        yield
        self.is_local = False

    def objective(self, loss, predictions, batch, share):
        self.shares.append(share)
        return loss * share

    def run(self, *batches, sizes, count):
        """Return the loss, summed over samples."""
        loss_sum = torch.zeros(())
        self.half(iter([torch.tensor(batch).reshape(-1, 1) for batch in batches]), sizes, count, loss_sum)
        return loss_sum.item()


def line(weight: float = 2.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def test_the_gradient_is_the_mean_over_the_updates_samples():
    model = line()
    bench = Bench(model)
    loss_sum = bench.run([1.0, 2.0, 6.0], [11.0], sizes=[3, 1], count=4)
    assert model.weight.grad.item() == pytest.approx((1 + 2 + 6 + 11) / 4)
    assert loss_sum == pytest.approx(2 * (1 + 2 + 6 + 11))


def test_a_batch_weighs_as_its_samples_among_those_of_all_workers():
    bench = Bench(line())
    bench.run([1.0, 2.0, 6.0], [11.0], sizes=[3, 1], count=16)
    assert bench.shares == [3 / 16, 1 / 16]


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_every_pass_but_the_last_stays_local(passes):
    bench = Bench(line())
    bench.run(*[[1.0]] * passes, sizes=[1] * passes, count=passes)
    expected = [number < passes for number in range(1, passes + 1) for _ in ("forward", "backward")]
    assert [is_local for _, is_local in bench.passes] == expected
    assert [name for name, _ in bench.passes] == ["forward", "backward"] * passes


def test_a_worker_without_a_share_exchanges_a_gradient_of_zero():
    model = line()
    bench = Bench(model)
    assert bench.run([5.0], sizes=[], count=1) == 0
    assert model.weight.grad.item() == 0
    assert bench.passes == [("forward", False), ("backward", False)]


def test_who_foresees_sees_each_batch_before_the_backward_pass_of_the_one_before():
    bench = Bench(line())
    bench.half.started = replace(
        bench.half.started, foresee=lambda batch: bench.passes.append(("foresee", batch.item()))
    )
    batches = iter([torch.tensor([[number]]) for number in (1.0, 2.0, 3.0, 4.0)])
    for sizes in ([1, 1], [1]):
        bench.half(batches, sizes, sum(sizes), torch.zeros(()))
    seen = [place if name == "foresee" else name for name, place in bench.passes]
    assert seen == ["forward", 2.0, "backward", "forward", 3.0, "backward", "forward", 4.0, "backward"]


def test_a_teachers_pass_leaves_the_students_random_numbers_as_they_are():
    """The user's loss may draw: here it mixes in noise from every generator."""

    class Noisy(MeanOfProducts):
        def loss(self, model, batch):
            noise = random.random() + np.random.normal() + torch.rand(())
            return super().loss(model, batch + noise)

    def draws():
        return random.random(), np.random.normal(), float(torch.rand(()))

    outputs, teachers, batch = outputs_of(Noisy(), CPU), [line(), line()], torch.ones(2, 1)
    seed_all(5)
    expected = [draws(), draws()]
    seed_all(5)
    assert draws() == expected[0]
    one, other = outputs.by(teachers, batch)
    assert draws() == expected[1]
    assert not one.equal(other)
    assert not one.requires_grad


@pytest.mark.parametrize("sizes", [[], [2]])
def test_only_a_worker_with_a_share_moves_its_batch_norm_statistics(sizes):
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    Bench(model).run([3.0, 5.0], sizes=sizes, count=2)
    moved = model[1].running_mean.item() != 0
    assert moved == bool(sizes)
    assert model[1].training


def test_batches_are_left_where_they_are_for_the_next_update():
    batches = iter([torch.ones(1, 1) * value for value in (1, 2, 3)])
    half = Bench(line()).half
    half(batches, [1, 1], 2, torch.zeros(()))
    assert next(batches).item() == 3


def test_each_batch_is_fetched_goes_forward_and_comes_back():
    bench = Bench(line())
    bench.run([1.0], [2.0], sizes=[1, 1], count=2)
    assert bench.phases == ["data", "forward", "backward"] * 2


def update_with(gradient: list[float], clip_norm: float | None) -> tuple[UpdateHalf, list[float]]:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in gradient]
    for parameter, value in zip(parameters, gradient, strict=True):
        parameter.grad = torch.tensor([value])
    half = UpdateHalf(torch.optim.SGD(parameters, lr=1.0), parameters, clip_norm)
    half()
    assert all(parameter.grad is None for parameter in parameters)
    return half, [parameter.item() for parameter in parameters]


def test_the_norm_of_the_whole_models_gradient_is_clipped_before_the_optimizers_step():
    half, moved = update_with([3.0, -4.0], clip_norm=1.0)
    assert moved == pytest.approx([-0.6, 0.8], rel=1e-5)
    assert half.gradient_norm.item() == 5


@pytest.mark.parametrize("clip_norm", [None, 5.5])
def test_a_gradient_within_the_norm_is_applied_as_it_is(clip_norm):
    half, moved = update_with([3.0, -4.0], clip_norm)
    assert moved == [-3, 4]
    assert (half.gradient_norm is None) == (clip_norm is None)


def test_a_batch_is_placed_in_the_structure_it_came_in():
    numerics = Numerics(torch.device("meta"))
    one = torch.ones(2)
    batch = {"pair": Pair(one, one), "rows": [one, (one,)], "names": ["a", "b"], "size": 2, "none": None}
    placed = numerics.place(batch)
    assert isinstance(placed["pair"], Pair)
    moved = [placed["pair"].inputs, placed["pair"].classes, placed["rows"][0], placed["rows"][1][0]]
    assert [tensor.device.type for tensor in moved] == ["meta"] * 4
    assert isinstance(placed["rows"], list)
    assert isinstance(placed["rows"][1], tuple)
    assert (placed["names"], placed["size"], placed["none"]) == (["a", "b"], 2, None)


@pytest.mark.parametrize("ndim", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("channels_last", [True, False])
def test_tensors_of_four_dimensions_alone_are_placed_channels_last(ndim, channels_last):
    tensor = torch.rand(*range(2, 2 + ndim))
    placed = Numerics(CPU, channels_last=channels_last).place(tensor)
    assert torch.equal(placed, tensor)
    assert placed.is_contiguous() != (channels_last and ndim == 4)
    if ndim == 4 and channels_last:
        assert placed.is_contiguous(memory_format=torch.channels_last)
