"""Validation is a mean over samples; what it borrows of the model it gives back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dist_train.core.evaluation import Validator, evaluation_buffers, recomputed_statistics
from dist_train.core.step import Numerics
from dist_train.exchange.collective import Alone
from dist_train.task import Task

CPU = torch.device("cpu")


class Values(Task):
    """The loss of a batch is the mean of its values; one measure comes by sample, one as a mean."""

    model = train_data = validation_data = None

    def loss(self, model, batch):
        predictions = model(batch)
        return predictions.mean(), predictions

    def metrics(self, predictions, batch):
        return {"square": predictions.square(), "mean_square": predictions.square().mean()}


class WithPeer:
    """A group of two in which the other worker's contribution is given beforehand."""

    workers = 2

    def __init__(self, *peer: float) -> None:
        self.peer = peer

    def sum(self, values):
        if len(values) == 1 < len(self.peer):
            # The vote on whether to go on; the peer wants to.
            return values
        return values + torch.tensor(self.peer, dtype=values.dtype)


def validate(batches, sizes, collective, model=None):
    loader = [torch.tensor(batch) for batch in batches]
    validator = Validator(Values(), loader, sizes, Numerics(CPU), collective)
    return validator(model or nn.Identity(), lambda: True)


def test_uneven_batches_count_by_their_samples():
    found = validate([[1.0, 2.0, 3.0], [10.0]], [3, 1], Alone())
    squares = (1 + 4 + 9 + 100) / 4
    assert found == pytest.approx({"loss": 16 / 4, "square": squares, "mean_square": squares})


def test_workers_count_by_their_samples():
    # In the order of the names: loss, mean_square, square, samples.
    found = validate([[1.0, 2.0, 3.0]], [3], WithPeer(10.0, 100.0, 100.0, 1.0))
    squares = (1 + 4 + 9 + 100) / 4
    assert found == pytest.approx({"loss": 16 / 4, "square": squares, "mean_square": squares})


@pytest.mark.parametrize("stand_in", [7.0, float("nan"), float("inf")])
def test_a_worker_without_a_part_adds_nothing_but_knows_the_names(stand_in):
    found = validate([[stand_in]], [0], WithPeer(10.0, 100.0, 100.0, 4.0))
    assert found == {"loss": 2.5, "square": 25.0, "mean_square": 25.0}


def test_sums_are_exact_beyond_single_precision():
    found = validate([[2.0**24], [1.0], [1.0]], [1, 1, 1], Alone())
    assert found["loss"] == (2**24 + 2) / 3


class Jumpy(nn.Module):
    """Draws a number in every forward pass, and notes the mode it was in."""

    def forward(self, inputs):
        self.seen = (self.training, torch.is_grad_enabled())
        return inputs + torch.rand(())


@pytest.mark.parametrize("mode", [True, False])
def test_mode_and_generators_are_given_back(mode):
    model = Jumpy().train(mode)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    validate([[1.0]], [1], Alone(), model)
    assert torch.equal(torch.rand(3), expected)
    assert model.seen == (False, False)
    assert model.training is mode
    assert torch.is_grad_enabled()


def test_every_batch_is_a_sign_of_life():
    signs = []
    loader = [torch.ones(1)] * 3
    Validator(Values(), loader, [1, 1, 1], Numerics(CPU), Alone())(
        nn.Identity(), lambda: signs.append(1) or True
    )
    assert len(signs) == 3


def with_buffers() -> nn.Module:
    model = nn.Module()
    model.register_buffer("statistics", torch.tensor([1.0, 3.0]))
    model.register_buffer("steps", torch.tensor(5))
    return model


def test_workers_share_the_mean_of_their_buffers_for_a_while():
    model = with_buffers()
    statistics = model.statistics
    with evaluation_buffers(model, WithPeer(2.0)):
        assert model.statistics.tolist() == [1.5, 2.5]
        assert model.steps == 5
    assert model.statistics.tolist() == [1, 3]
    assert model.statistics is statistics


def test_buffers_come_back_after_a_failure():
    model = with_buffers()
    with pytest.raises(KeyError), evaluation_buffers(model, WithPeer(2.0)):
        raise KeyError
    assert model.statistics.tolist() == [1, 3]


def test_one_worker_keeps_its_buffers():
    model = with_buffers()
    with evaluation_buffers(model, Alone()):
        assert model.statistics.tolist() == [1, 3]


BATCHES = [[0.0, 2.0], [4.0, 8.0], [100.0, 300.0]]


def recompute(model, number):
    batches = iter([torch.tensor(batch).reshape(-1, 1) for batch in BATCHES])
    return recomputed_statistics(model, batches, number, Values(), Numerics(CPU)), batches


def test_statistics_are_the_plain_mean_over_the_batches_asked_for():
    model = nn.BatchNorm1d(1, momentum=0.3)
    context, batches = recompute(model, 2)
    with context:
        assert model.running_mean.item() == pytest.approx((1 + 6) / 2)
        # The unbiased variances of the two batches are 2 and 8.
        assert model.running_var.item() == pytest.approx((2 + 8) / 2)
    assert next(batches)[0] == 100
    assert (model.running_mean.item(), model.running_var.item(), model.momentum) == (0, 1, 0.3)
    assert model.num_batches_tracked == 0


def test_statistics_and_momentum_come_back_after_a_failure():
    model = nn.BatchNorm1d(1, momentum=0.3)
    batches = (torch.full((2, 1), 1 / (2 - number)) for number in range(3))
    context = recomputed_statistics(model, batches, 3, Values(), Numerics(CPU))
    with pytest.raises(ZeroDivisionError), context:
        pass
    assert (model.running_mean.item(), model.momentum) == (0, 0.3)


@pytest.mark.parametrize("model", [nn.Linear(1, 1), nn.BatchNorm1d(1).eval()], ids=["none", "frozen"])
def test_a_model_without_statistics_to_recompute_loads_nothing(model):
    context, batches = recompute(model, 2)
    with context:
        pass
    assert next(batches)[0] == 0


def test_recomputing_leaves_the_generators_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    context, _ = recompute(nn.Sequential(Jumpy(), nn.BatchNorm1d(1)), 3)
    with context:
        pass
    assert torch.equal(torch.rand(3), expected)


def test_a_worker_told_to_stop_ends_the_validation_of_all():
    class Stopping(WithPeer):
        def sum(self, values):
            return values + 1 if len(values) == 1 else pytest.fail("the measures are not summed any more")

    assert validate([[1.0]], [1], Stopping()) is None
    loader = [torch.ones(1)] * 3
    validator = Validator(Values(), loader, [1, 1, 1], Numerics(CPU), Alone())
    assert validator(nn.Identity(), lambda: False) is None
