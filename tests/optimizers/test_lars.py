import copy
import math

import pytest
import torch
from torch import nn

from dist_train.optimizers.lars import LARS

SHAPES = [(4, 3), (2, 5), (6,)]


def numbers(seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def train(optimizer, parameters, steps, rates=None):
    for step in steps:
        for parameter, gradient in zip(parameters, numbers(100 + step), strict=True):
            parameter.grad = gradient
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()


def norm(values):
    return math.sqrt(sum(value * value for value in values))


def by_hand(weights, gradients, rates, m, wd, trust, eps, nesterov=False, v_form=False):
    """The published update on plain lists of floats; returns the weights after all steps."""
    weights = list(weights)
    u = [0.0] * len(weights)
    for g, lr in zip(gradients, rates, strict=True):
        local = trust * norm(weights) / (norm(g) + wd * norm(weights) + eps)
        for i, w in enumerate(weights):
            move = local * (g[i] + wd * w) * (lr if v_form else 1.0)
            u[i] = m * u[i] + move
            step = move + m * u[i] if nesterov else u[i]
            weights[i] = w - (step if v_form else lr * step)
    return weights


def compare(parameters, start, rates, **by_hand_settings):
    for index, parameter in enumerate(parameters):
        gradients = [numbers(100 + step)[index].flatten().tolist() for step in range(len(rates))]
        expected = by_hand(start[index].flatten().tolist(), gradients, rates, **by_hand_settings)
        assert parameter.detach().flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_it_is_the_published_update_at_any_rates(nesterov, momentum, decay):
    start = numbers(1)
    parameters = [nn.Parameter(weight.clone()) for weight in start]
    optimizer = LARS(parameters, 1.0, momentum, decay, trust=0.02, eps=1e-9, nesterov=nesterov)
    rates = [0.1, 0.5, 1.0, 3.2, 0.3]
    train(optimizer, parameters, range(5), rates)
    compare(parameters, start, rates, m=momentum, wd=decay, trust=0.02, eps=1e-9, nesterov=nesterov)


def test_at_a_constant_rate_it_is_the_form_of_the_paper():
    start = numbers(1)
    parameters = [nn.Parameter(weight.clone()) for weight in start]
    train(LARS(parameters, 0.7, 0.9, 5e-4, trust=0.02), parameters, range(6))
    compare(parameters, start, [0.7] * 6, m=0.9, wd=5e-4, trust=0.02, eps=1e-9, v_form=True)


def test_a_group_that_does_not_adapt_is_plain_sgd():
    ours, theirs = ([nn.Parameter(weight) for weight in numbers(1)] for _ in range(2))
    train(LARS([{"params": ours, "adapt": False}], 0.1, 0.9, 1e-4), ours, range(5))
    train(torch.optim.SGD(theirs, 0.1, momentum=0.9, weight_decay=1e-4), theirs, range(5))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-13, atol=0)


def test_the_first_step_moves_a_layer_by_the_trusted_share_of_its_norm():
    weight = nn.Parameter(torch.full((3, 4), 2.0))
    weight.grad = torch.full((3, 4), 1e6)
    before = weight.detach().clone()
    LARS([weight], lr=1.0, trust=0.001).step()
    assert ((before - weight).norm() / before.norm()).item() == pytest.approx(0.001, rel=1e-4)


def test_where_a_norm_is_zero_the_ratio_is_one():
    zero_weight, zero_gradient = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero_weight.grad, zero_gradient.grad = torch.ones(2, 2), torch.zeros(2, 2)
    LARS([zero_weight, zero_gradient], lr=0.5, weight_decay=0.1, eps=0.0).step()
    assert torch.equal(zero_weight.detach(), torch.full((2, 2), -0.5))
    assert torch.allclose(zero_gradient.detach(), torch.full((2, 2), 1 - 0.5 * 0.1))


def test_a_parameter_without_a_gradient_stays_and_may_get_one_later():
    early, late = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([early, late], lr=0.1)
    optimizer.step()
    early.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(late.detach(), torch.ones(2, 2))
    late.grad = torch.ones(2, 2)
    optimizer.step()
    assert late.detach().max() < 1


def test_gradients_are_left_as_they_were():
    parameters = [nn.Parameter(weight) for weight in numbers(1)]
    train(LARS(parameters, 0.1, weight_decay=0.1, nesterov=True), parameters, range(2))
    for parameter, gradient in zip(parameters, numbers(101), strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_saving_and_loading_in_between_changes_nothing(momentum):
    straight = [nn.Parameter(weight) for weight in numbers(1)]
    train(LARS(straight, 0.1, momentum, 1e-4), straight, range(6))

    first = [nn.Parameter(weight) for weight in numbers(1)]
    optimizer = LARS(first, 0.1, momentum, 1e-4)
    train(optimizer, first, range(3))
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    resumed = LARS(second, 9.9)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(resumed, second, range(3, 6))
    for one, other in zip(straight, second, strict=True):
        assert torch.equal(one, other)


def test_nothing_waits_for_the_device():
    """On the meta device there are no values: reading one raises."""
    weight = nn.Parameter(torch.ones(3, 3, device="meta"))
    weight.grad = torch.ones(3, 3, device="meta")
    optimizer = LARS([weight], lr=0.1, weight_decay=1e-4, nesterov=True)
    optimizer.step()
    optimizer.step()


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=0.1)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert weight.detach().max() < 1
