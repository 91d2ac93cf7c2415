"""Every optimizer against its published formula, computed by hand on lists of floats."""

import copy
import math

import pytest
import torch
from torch import nn

from dist_train.config import schema
from dist_train.errors import TrainingError
from dist_train.optimizers import LARS, build, set_rate, set_weight_decay

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
STEPS = 6


def sgd(w, gradients, lr, wd, momentum=0.0, nesterov=False):
    buffer = 0.0
    for g in gradients:
        g += wd * w
        buffer = momentum * buffer + g
        w -= lr * (g + momentum * buffer if nesterov else buffer)
    return w


def adagrad(w, gradients, lr, wd, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    total = initial_accumulator_value
    for t, g in enumerate(gradients):
        g += wd * w
        total += g * g
        w -= lr / (1 + t * lr_decay) * g / (math.sqrt(total) + eps)
    return w


def rmsprop(w, gradients, lr, wd, alpha=0.99, momentum=0.0, centered=False, eps=1e-8):
    square = mean = buffer = 0.0
    for g in gradients:
        g += wd * w
        square = alpha * square + (1 - alpha) * g * g
        mean = alpha * mean + (1 - alpha) * g
        buffer = momentum * buffer + g / (math.sqrt(square - mean * mean * centered) + eps)
        w -= lr * buffer
    return w


def adam(w, gradients, lr, wd, betas=(0.9, 0.999), eps=1e-8, amsgrad=False, decoupled=False):
    first = second = largest = 0.0
    for t, g in enumerate(gradients, start=1):
        if decoupled:
            w -= lr * wd * w
        else:
            g += wd * w
        first = betas[0] * first + (1 - betas[0]) * g
        second = betas[1] * second + (1 - betas[1]) * g * g
        largest = max(largest, second)
        scale = math.sqrt((largest if amsgrad else second) / (1 - betas[1] ** t)) + eps
        w -= lr * first / (1 - betas[0] ** t) / scale
    return w


def adamw(w, gradients, lr, wd, **options):
    return adam(w, gradients, lr, wd, decoupled=True, **options)


CASES = [
    (schema.SGD, sgd, {"momentum": 0.0}),
    (schema.SGD, sgd, {"momentum": 0.9}),
    (schema.SGD, sgd, {"momentum": 0.9, "nesterov": True}),
    (schema.Adagrad, adagrad, {}),
    (schema.Adagrad, adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}),
    (schema.RMSProp, rmsprop, {}),
    (schema.RMSProp, rmsprop, {"alpha": 0.9, "momentum": 0.5, "centered": True, "eps": 1e-3}),
    (schema.Adam, adam, {}),
    (schema.Adam, adam, {"betas": (0.8, 0.9), "eps": 1e-3, "amsgrad": True}),
    (schema.AdamW, adamw, {}),
    (schema.AdamW, adamw, {"betas": (0.8, 0.9), "eps": 1e-3, "amsgrad": True}),
]
ALL = [schema.SGD, schema.Adagrad, schema.RMSProp, schema.Adam, schema.AdamW, schema.LARS]


def small_model():
    """A weight, biases and a normalisation layer, in double precision."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()


def gradient(step, like):
    """Some numbers in the memory layout that a backward pass gives gradients: the parameter's."""
    generator = torch.Generator().manual_seed(step * 1000 + like.numel())
    return torch.empty_like(like).copy_(torch.randn(like.shape, generator=generator, dtype=like.dtype))


def train(model, optimizer, steps):
    for step in steps:
        for parameter in model.parameters():
            parameter.grad = gradient(step, parameter)
        optimizer.step()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("everything", [False, True], ids=["weights", "everything"])
@pytest.mark.parametrize(("section", "by_hand", "options"), CASES)
def test_the_published_formula_with_decay_where_it_belongs(section, by_hand, options, everything, device):
    settings = section(lr=0.05, weight_decay=0.1, decay_norm_and_bias=everything, **options)
    model = small_model().to(device)
    before = {name: parameter.detach().flatten().tolist() for name, parameter in model.named_parameters()}
    train(model, build(model, settings), range(STEPS))
    for name, parameter in model.named_parameters():
        decay = 0.1 if everything or parameter.ndim > 1 else 0.0
        gradients = [gradient(step, parameter).flatten().tolist() for step in range(STEPS)]
        expected = [
            by_hand(w, history, 0.05, decay, **options)
            for w, history in zip(before[name], zip(*gradients, strict=True), strict=True)
        ]
        assert parameter.detach().flatten().tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


class Everything(nn.Module):
    """One of each kind of parameter that the grouping tells apart."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.batch_norm = nn.BatchNorm2d(4)
        self.group_norm = nn.GroupNorm(2, 4)
        self.image_norm = nn.LayerNorm((4, 6, 6))
        self.rms_norm = nn.RMSNorm((2, 4))
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(4))


WEIGHTS = {"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "embedding.weight"}


def names_by_group(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {group["name"]: [names[p] for p in group["params"]] for group in optimizer.param_groups}


@pytest.mark.parametrize("section", ALL)
def test_weights_are_decayed_and_norms_biases_and_vectors_are_not(section):
    model = Everything()
    optimizer = build(model, section(lr=0.1, weight_decay=0.01))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names_by_group(model, optimizer) == {
        "weights": [name for name in trainable if name in WEIGHTS],
        "norm and bias": [name for name in trainable if name not in WEIGHTS],
    }
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_everything_is_decayed_where_the_settings_say_so():
    optimizer = build(Everything(), schema.SGD(lr=0.1, weight_decay=0.01, decay_norm_and_bias=True))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01]


def test_lars_adapts_the_weights_alone_whatever_is_decayed():
    for everything in (False, True):
        optimizer = build(Everything(), schema.LARS(lr=0.1, trust=0.02, decay_norm_and_bias=everything))
        assert isinstance(optimizer, LARS)
        assert [(group["adapt"], group["trust"]) for group in optimizer.param_groups] == [
            (True, 0.02),
            (False, 0.02),
        ]


@pytest.mark.parametrize(("first", "group"), [("weight", "weights"), ("bias", "norm and bias")])
def test_a_parameter_in_two_roles_is_grouped_by_the_first(first, group):
    shared = nn.Parameter(torch.ones(3, 3))
    model = nn.ModuleList([nn.Module(), nn.Module()])
    model[0].register_parameter(first, shared)
    model[1].register_parameter("bias" if first == "weight" else "weight", shared)
    optimizer = build(model, schema.SGD(lr=0.1))
    assert [(g["name"], len(g["params"])) for g in optimizer.param_groups] == [(group, 1)]


def test_an_empty_group_is_left_out():
    without_bias = build(nn.Linear(3, 3, bias=False), schema.SGD(lr=0.1))
    assert [group["name"] for group in without_bias.param_groups] == ["weights"]
    only_norm = build(nn.LayerNorm(3), schema.LARS(lr=0.1))
    assert [group["name"] for group in only_norm.param_groups] == ["norm and bias"]


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(TrainingError, match="no trainable parameters"):
        build(nn.Linear(3, 3).requires_grad_(False), schema.SGD(lr=0.1))


@pytest.mark.parametrize("section", [schema.SGD, schema.Adagrad, schema.Adam, schema.AdamW])
def test_the_step_is_fused_where_torch_can(section):
    assert all(group["fused"] for group in build(small_model(), section(lr=0.1)).param_groups)
    complex_model = nn.Linear(2, 2, dtype=torch.complex64)
    assert not any(group["fused"] for group in build(complex_model, section(lr=0.1)).param_groups)


@pytest.mark.parametrize("section", ALL)
def test_a_parameter_may_get_its_first_gradient_late(section):
    model = small_model()
    optimizer = build(model, section(lr=0.1))
    last = model[2].weight
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = last.detach().clone()
    optimizer.step()
    assert torch.equal(last, before)
    last.grad = torch.ones_like(last)
    optimizer.step()
    assert (last < before).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("section", ALL)
def test_saving_and_loading_in_between_changes_nothing(section, device):
    """State is loaded as saved files hold it, contiguous, though the weights are channels-last."""

    def start():
        torch.manual_seed(1)
        return nn.Conv2d(3, 4, 3).double().to(device, memory_format=torch.channels_last)

    settings = section(lr=0.05, weight_decay=0.1)
    straight, model = start(), start()
    train(straight, build(straight, settings), range(STEPS))
    optimizer = build(model, settings)
    train(model, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state.update((name, value.contiguous()) for name, value in state.items())
    resumed = build(model, settings)
    resumed.load_state_dict(saved)
    train(model, resumed, range(3, STEPS))
    for one, other in zip(straight.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("section", ALL)
def test_the_memory_format_changes_nothing(section, device):
    """The gradients of a real backward pass, in both formats."""

    def trained(memory_format):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)).double()
        model.to(device, memory_format=memory_format)
        images = torch.randn(2, 3, 8, 8, dtype=torch.float64, device=device)
        optimizer = build(model, section(lr=0.05, weight_decay=0.01))
        for _ in range(3):
            optimizer.zero_grad()
            model(images.to(memory_format=memory_format)).square().mean().backward()
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    there, here = trained(torch.channels_last), trained(torch.contiguous_format)
    assert torch.allclose(there, here, rtol=1e-6, atol=1e-9)


class TestSetRate:
    @pytest.mark.parametrize("section", ALL)
    def test_the_rate_reaches_every_group_and_the_momentum_stays(self, section):
        optimizer = build(small_model(), section(lr=0.1))
        before = [(group.get("momentum"), group.get("betas")) for group in optimizer.param_groups]
        set_rate(optimizer, 0.7, None)
        assert [group["lr"] for group in optimizer.param_groups] == [0.7, 0.7]
        assert [(group.get("momentum"), group.get("betas")) for group in optimizer.param_groups] == before

    @pytest.mark.parametrize("section", [schema.SGD, schema.RMSProp, schema.LARS])
    def test_the_momentum_is_set_where_given(self, section):
        optimizer = build(small_model(), section(lr=0.1))
        set_rate(optimizer, 0.7, 0.85)
        assert [group["momentum"] for group in optimizer.param_groups] == [0.85, 0.85]

    @pytest.mark.parametrize("section", [schema.Adam, schema.AdamW])
    def test_for_adam_it_is_the_first_beta(self, section):
        optimizer = build(small_model(), section(lr=0.1))
        set_rate(optimizer, 0.7, 0.85)
        assert [group["betas"] for group in optimizer.param_groups] == [(0.85, 0.999)] * 2

    @pytest.mark.parametrize("section", ALL)
    def test_a_step_at_a_changed_rate_and_momentum_works(self, section):
        model = small_model()
        optimizer = build(model, section(lr=0.1))
        for step, momentum in enumerate((0.95, 0.85, 0.95)):
            set_rate(optimizer, 0.1 + step, momentum)
            train(model, optimizer, [step])
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_weight_decay_is_set_to_a_part_of_what_is_configured_where_there_is_any():
    optimizer = build(small_model(), schema.SGD(lr=0.1, weight_decay=1e-4))
    for factor, decay in ((0.1, 1e-5), (0.0, 0.0), (1.0, 1e-4)):
        set_weight_decay(optimizer, schema.SGD(lr=0.1, weight_decay=1e-4), factor)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(decay), 0.0]
