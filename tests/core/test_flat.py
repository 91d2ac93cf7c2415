"""A model and its optimizer, laid out flat and back, lose nothing."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dist_train.config import schema
from dist_train.core.flat import (
    FlatState,
    Layout,
    Placed,
    flatten_optimizer_state,
    restore_optimizer_state,
    state_keys,
)
from dist_train.errors import TrainingError
from dist_train.optimizers import build

OPTIMIZERS = {
    "sgd": schema.SGD(lr=0.1, momentum=0.0),
    "momentum": schema.SGD(lr=0.1, weight_decay=0.01),
    "adagrad": schema.Adagrad(lr=0.1, lr_decay=0.1, initial_accumulator_value=0.5),
    "rmsprop": schema.RMSProp(lr=0.1),
    "centred rmsprop": schema.RMSProp(lr=0.1, momentum=0.5, centered=True),
    "adam": schema.Adam(lr=0.1),
    "adamw": schema.AdamW(lr=0.1, amsgrad=True),
    "lars": schema.LARS(lr=0.1),
}
KEYS = {
    "sgd": {},
    "momentum": {"momentum_buffer": 0.0},
    "adagrad": {"sum": 0.5},
    "rmsprop": {"square_avg": 0.0},
    "centred rmsprop": {"square_avg": 0.0, "grad_avg": 0.0, "momentum_buffer": 0.0},
    "adam": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "adamw": {"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0},
    "lars": {"momentum_buffer": 0.0},
}
WITHOUT_STEPS = {"sgd", "momentum", "lars"}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
SGD = OPTIMIZERS["momentum"]


class Network(nn.Module):
    """A channels-last convolution, a tied and a frozen weight, a scalar and an empty parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.embedding = nn.Embedding(5, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.zeros(0, 3))


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in trainable(model).values():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(values)
        optimizer.step()


class TestLayout:
    def test_parameters_stand_group_by_group_each_once_at_multiples_of_16(self):
        layout = Layout.of(network(), SGD)
        assert layout.parameters == (
            Placed("nothing", "weights", (0, 3), 0),
            Placed("conv.weight", "weights", (4, 3, 3, 3), 0),
            Placed("embedding.weight", "weights", (5, 4), 112),
            Placed("scale", "norm and bias", (), 144),
            Placed("conv.bias", "norm and bias", (4,), 160),
            Placed("norm.weight", "norm and bias", (4,), 176),
            Placed("norm.bias", "norm and bias", (4,), 192),
        )
        assert layout.size == 208
        assert layout.offsets == (0, 0, 112, 144, 160, 176, 192)
        assert layout.names[:2] == ("nothing", "conv.weight")

    @every_optimizer
    def test_it_is_in_the_order_of_the_optimizer(self, name):
        model = network()
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = build(model, OPTIMIZERS[name]).param_groups
        assert [(placed.name, placed.group) for placed in Layout.of(model, OPTIMIZERS[name]).parameters] == [
            (names[parameter], group["name"]) for group in groups for parameter in group["params"]
        ]

    def test_it_goes_through_json_unchanged(self):
        layout = Layout.of(network(), SGD)
        assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout

    def test_parameters_of_another_type_are_refused_by_name(self):
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
        model[1].half()
        model[2].double()
        with pytest.raises(TrainingError, match=r"1\.weight \(float16\), .*2\.weight \(float64\) and 1 more"):
            Layout.of(model, SGD)

    def test_frozen_parameters_may_be_of_any_type(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).half().requires_grad_(False))
        assert Layout.of(model, SGD).names == ("0.weight", "0.bias")

    def test_a_model_with_nothing_to_train_is_refused(self):
        with pytest.raises(TrainingError, match="no trainable parameters"):
            Layout.of(nn.Linear(2, 2).requires_grad_(False), SGD)


class TestVectors:
    def test_there_and_back_every_parameter_keeps_its_numbers_and_its_memory_format(self):
        model, other = network(0), network(1)
        layout = Layout.of(model, SGD)
        vector = layout.vector()
        layout.flatten(trainable(model), vector)
        layout.unflatten(vector, trainable(other))
        for name, parameter in trainable(other).items():
            assert torch.equal(parameter, trainable(model)[name])
        assert other.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert other.embedding.weight is other.head.weight

    def test_elements_are_row_major_and_the_padding_is_zero(self):
        model = network()
        layout = Layout.of(model, SGD)
        vector = layout.vector()
        layout.flatten(trainable(model), vector)
        weight = model.conv.weight.detach()
        assert vector[:108].tolist() == [
            weight[i, j, k, m].item() for i in range(4) for j in range(3) for k in range(3) for m in range(3)
        ]
        padding = torch.ones(layout.size, dtype=torch.bool)
        for placed in layout.parameters:
            padding[placed.start : placed.stop] = False
        assert padding.sum() == 208 - (108 + 20 + 1 + 3 * 4)
        assert not vector[padding].any()

    def test_views_share_the_vectors_memory(self):
        layout = Layout.of(network(), SGD)
        vector = layout.vector()
        layout.views(vector)["embedding.weight"][1, 2] = 7.0
        assert vector.nonzero().tolist() == [[112 + 1 * 4 + 2]]

    def test_a_parameter_without_a_gradient_has_one_of_zeros(self):
        layout = Layout.of(nn.Linear(2, 2), SGD)
        vector = torch.ones(layout.size)
        layout.flatten({"weight": None, "bias": torch.tensor([2.0, 3.0])}, vector)
        assert vector[:4].tolist() == [0.0] * 4
        assert vector[16:18].tolist() == [2.0, 3.0]

    def test_a_parameter_that_was_forgotten_is_an_error(self):
        layout = Layout.of(nn.Linear(2, 2), SGD)
        with pytest.raises(KeyError, match="bias"):
            layout.flatten({"weight": None}, layout.vector())

    @pytest.mark.parametrize("vector", [torch.zeros(16), torch.zeros(2, 16), torch.zeros(32).double()])
    def test_other_vectors_are_refused(self, vector):
        with pytest.raises(ValueError, match=r"expected 32 elements of float32, not shape \["):
            Layout.of(nn.Linear(2, 2), SGD).views(vector)


class TestOptimizerState:
    @every_optimizer
    def test_the_vectors_are_known_before_any_step_with_what_they_begin_with(self, name):
        state = FlatState.begin(3, OPTIMIZERS[name])
        assert {key: vector.tolist() for key, vector in state.vectors.items()} == {
            key: [value] * 3 for key, value in KEYS[name].items()
        }
        assert state.scalars == ({} if name in WITHOUT_STEPS else {"step": 0.0})
        assert set(state_keys(OPTIMIZERS[name])) == KEYS[name].keys()

    @every_optimizer
    @pytest.mark.parametrize("steps", [0, 3])
    def test_training_goes_on_bit_for_bit_with_the_state_restored(self, name, steps):
        settings = OPTIMIZERS[name]
        model, other = network(), network(1)
        layout = Layout.of(model, settings)
        optimizer = build(model, settings)
        train(model, optimizer, range(steps))
        flat = flatten_optimizer_state(optimizer, layout, settings)
        other.load_state_dict(model.state_dict())
        restored = build(other, settings)
        restore_optimizer_state(restored, layout, flat)
        train(model, optimizer, range(steps, steps + 3))
        train(other, restored, range(steps, steps + 3))
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)

    @every_optimizer
    def test_restored_state_is_flattened_to_the_same(self, name):
        settings = OPTIMIZERS[name]
        model = network()
        layout = Layout.of(model, settings)
        generator = torch.Generator().manual_seed(5)
        flat = FlatState.begin(layout.size, settings)
        for vector in flat.vectors.values():
            layout.flatten(
                {p.name: torch.rand(p.shape, generator=generator) for p in layout.parameters}, vector
            )
        flat.scalars.update((key, 7.0) for key in flat.scalars)
        optimizer = build(model, settings)
        restore_optimizer_state(optimizer, layout, flat)
        found = flatten_optimizer_state(optimizer, layout, settings)
        assert found.scalars == flat.scalars
        assert found.vectors.keys() == flat.vectors.keys()
        for key, vector in flat.vectors.items():
            again = layout.views(found.vectors[key])
            for parameter, view in layout.views(vector).items():
                assert torch.equal(view, again[parameter])

    def test_it_is_a_copy_both_ways(self):
        model = network()
        layout, optimizer = Layout.of(model, SGD), build(model, SGD)
        train(model, optimizer, range(1))
        flat = flatten_optimizer_state(optimizer, layout, SGD)
        before = flat.vectors["momentum_buffer"].clone()
        train(model, optimizer, range(1, 2))
        assert torch.equal(flat.vectors["momentum_buffer"], before)
        restore_optimizer_state(optimizer, layout, flat)
        train(model, optimizer, range(2, 3))
        assert torch.equal(flat.vectors["momentum_buffer"], before)

    def test_state_follows_the_memory_format_of_its_parameter(self):
        model = network()
        layout, optimizer = Layout.of(model, OPTIMIZERS["adam"]), build(model, OPTIMIZERS["adam"])
        restore_optimizer_state(optimizer, layout, FlatState.begin(layout.size, OPTIMIZERS["adam"]))
        state = optimizer.state[model.conv.weight]
        assert state["exp_avg"].stride() == model.conv.weight.stride()
        assert not state["exp_avg"].requires_grad

    def test_of_several_counts_of_steps_the_largest_stands_for_all(self):
        model = nn.Linear(2, 2)
        settings = OPTIMIZERS["adam"]
        optimizer = build(model, settings)
        for names in (("weight", "bias"), ("weight",)):
            for name, parameter in model.named_parameters():
                parameter.grad = torch.ones_like(parameter) if name in names else None
            optimizer.step()
        assert flatten_optimizer_state(optimizer, Layout.of(model, settings), settings).scalars["step"] == 2

    def test_a_part_is_a_window(self):
        flat = FlatState.begin(64, OPTIMIZERS["adam"])
        part = flat.part(range(16, 48))
        part.vectors["exp_avg"].fill_(1.0)
        part.scalars["step"] = 3.0
        assert flat.vectors["exp_avg"].nonzero().flatten().tolist() == list(range(16, 48))
        assert flat.scalars["step"] == 3.0

    def test_an_optimizer_of_another_model_is_refused(self):
        with pytest.raises(ValueError, match="not those of the layout"):
            flatten_optimizer_state(build(nn.Linear(2, 3), SGD), Layout.of(nn.Linear(2, 2), SGD), SGD)
