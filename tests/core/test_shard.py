"""Shards train their slices to the bits that one optimizer over the whole model gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dist_train.config import schema
from dist_train.core.damping import DelayCompensation
from dist_train.core.flat import FlatState, Layout, flatten_optimizer_state
from dist_train.core.shard import PlainSlots, Shard, ShardState, parts
from dist_train.errors import ConfigError
from dist_train.optimizers import build, set_for_update
from dist_train.optimizers.outer import server_optimizer
from dist_train.rules.schedule import Scheduled

OPTIMIZERS = {
    "sgd": schema.SGD(lr=0.1, momentum=0.0, weight_decay=0.01),
    "nesterov": schema.SGD(lr=0.1, nesterov=True, weight_decay=0.01),
    "adagrad": schema.Adagrad(lr=0.1, lr_decay=0.1, initial_accumulator_value=0.5, weight_decay=0.01),
    "rmsprop": schema.RMSProp(lr=0.01, momentum=0.5, centered=True, weight_decay=0.01),
    "adam": schema.Adam(lr=0.01, weight_decay=0.01),
    "adamw": schema.AdamW(lr=0.01, amsgrad=True, weight_decay=0.1),
    "lars": schema.LARS(lr=1.0, trust=0.02, weight_decay=0.01),
}
PLAIN = schema.SGD(lr=1.0, momentum=0.0)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
any_number_of_shards = pytest.mark.parametrize("shards", [1, 2, 3, 5])


class Network(nn.Module):
    """Sizes that leave every remainder by 16, weights with and without decay, a tied and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(37, 29)
        self.norm = nn.LayerNorm(29)
        self.even = nn.Linear(16, 32)
        self.embedding = nn.Embedding(7, 13)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.head = nn.Linear(13, 7)
        self.head.weight = self.embedding.weight


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in trainable(model).items()}


class Whole:
    """A model trained by torch's optimizer."""

    def __init__(self, model: nn.Module, settings) -> None:
        self.model, self.settings = model, settings
        self.layout = Layout.of(model, settings)
        self.optimizer = build(model, settings)

    def step(self, given: dict[str, torch.Tensor], rate: float, *moved: float | None) -> None:
        for name, parameter in trainable(self.model).items():
            parameter.grad = torch.empty_like(parameter).copy_(given[name])
        set_for_update(self.optimizer, self.settings, Scheduled(rate, *moved))
        self.optimizer.step()

    def state(self) -> ShardState:
        parameters = self.layout.vector()
        self.layout.flatten(trainable(self.model), parameters)
        return ShardState(parameters, flatten_optimizer_state(self.optimizer, self.layout, self.settings))


class Server:
    """Shards of one model, told everything in step."""

    def __init__(self, whole: Whole, shards: int) -> None:
        self.layout, self.settings = whole.layout, whole.settings
        self.parts = parts(self.layout, shards, self.settings)
        self.shards = [Shard(self.layout, part, self.settings, PlainSlots(len(part))) for part in self.parts]
        self.version = 0
        self.load(whole.state())

    def load(self, state: ShardState) -> None:
        for shard, part in zip(self.shards, self.parts, strict=True):
            shard.load(self.version, state.part(part))

    def step(self, given: dict[str, torch.Tensor], rate: float, *moved: float | None) -> None:
        vector = self.layout.vector()
        self.layout.flatten(given, vector)
        self.version += 1
        for shard, part in zip(self.shards, self.parts, strict=True):
            shard.take(0, vector[part.start : part.stop], 32.0, borrow=True)
            shard.step(self.version, Scheduled(rate, *moved))

    def state(self) -> ShardState:
        whole = ShardState(self.layout.vector(), FlatState.begin(self.layout.size, self.settings))
        for shard, part in zip(self.shards, self.parts, strict=True):
            shard.export(whole.part(part))
        return whole


def assert_same(layout: Layout, one: ShardState, other: ShardState) -> None:
    """Padding of the optimizer's state may differ: it reaches no parameter."""
    assert torch.equal(one.parameters, other.parameters)
    assert one.optimizer.scalars == other.optimizer.scalars
    assert one.optimizer.vectors.keys() == other.optimizer.vectors.keys()
    for key, vector in one.optimizer.vectors.items():
        others = layout.views(other.optimizer.vectors[key])
        for name, view in layout.views(vector).items():
            assert torch.equal(view, others[name]), (key, name)


class TestReduction:
    @any_number_of_shards
    @every_optimizer
    def test_steps_are_those_of_the_whole_models_optimizer_to_the_bit(self, name, shards):
        whole = Whole(network(), OPTIMIZERS[name])
        server = Server(whole, shards)
        for step, rate in enumerate([0.1, 0.2, 0.05, 0.3]):
            whole.step(gradients(whole.model, step), rate)
            server.step(gradients(whole.model, step), rate)
        assert_same(whole.layout, whole.state(), server.state())

    @every_optimizer
    def test_another_number_of_shards_goes_on_from_the_merged_state(self, name):
        whole = Whole(network(), OPTIMIZERS[name])
        straight = Server(whole, 2)
        for step in range(2):
            straight.step(gradients(whole.model, step), 0.1)
        recut = Server(whole, 3)
        recut.load(straight.state())
        assert_same(whole.layout, straight.state(), recut.state())
        for step in range(2, 4):
            straight.step(gradients(whole.model, step), 0.1)
            recut.step(gradients(whole.model, step), 0.1)
        assert_same(whole.layout, straight.state(), recut.state())

    @pytest.mark.parametrize("name", ["nesterov", "rmsprop", "adam", "lars"])
    def test_the_momentum_moves_where_it_is_given(self, name):
        whole = Whole(network(), OPTIMIZERS[name])
        server = Server(whole, 2)
        for step, momentum in enumerate([0.95, 0.85, None]):
            whole.step(gradients(whole.model, step), 0.1, momentum)
            server.step(gradients(whole.model, step), 0.1, momentum)
        assert_same(whole.layout, whole.state(), server.state())

    @every_optimizer
    def test_so_does_the_weight_decay_of_weights_and_of_what_else_is_decayed(self, name):
        settings = OPTIMIZERS[name].model_copy(update={"weight_decay": 0.1})
        whole = Whole(network(), settings)
        server, constant = Server(whole, 2), Server(whole, 2)
        for step, factor in enumerate([1.0, 0.1, 0.0]):
            whole.step(gradients(whole.model, step), 0.1, None, factor)
            server.step(gradients(whole.model, step), 0.1, None, factor)
            constant.step(gradients(whole.model, step), 0.1)
        assert_same(whole.layout, whole.state(), server.state())
        assert not torch.equal(server.state().parameters, constant.state().parameters)

    def test_a_channels_last_model_is_trained_alike(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)).to(memory_format=torch.channels_last)
        whole = Whole(model, OPTIMIZERS["nesterov"])
        server = Server(whole, 3)
        for step in range(3):
            whole.step(gradients(model, step), 0.1)
            server.step(gradients(model, step), 0.1)
        assert_same(whole.layout, whole.state(), server.state())

    def test_diloco_is_nesterov_on_the_mean_of_the_members_moves(self):
        outer = schema.NesterovOuter(lr=0.5, momentum=0.25)
        layout = Layout.of(nn.Linear(1, 1, bias=False), PLAIN)
        shard = Shard(layout, range(16), server_optimizer(outer), PlainSlots(16))
        centre = velocity = 0.0
        for version, (one, two) in enumerate([(3.0, 5.0), (-1.0, 2.0), (0.5, 0.0)], 1):
            shard.take(0, torch.full((16,), one), 1.0, borrow=True)
            shard.take(1, torch.full((16,), two), 1.0, borrow=True)
            shard.step(version, Scheduled(outer.lr))
            mean = (one + two) / 2
            velocity = 0.25 * velocity + mean
            centre -= 0.5 * (mean + 0.25 * velocity)
            assert shard.state().parameters[0].item() == centre


class TestParts:
    def test_elementwise_optimizers_are_cut_anywhere_and_lars_between_parameters(self):
        layout = Layout.of(network(), PLAIN)
        offsets = set(layout.offsets)
        assert not {part.start for part in parts(layout, 5, OPTIMIZERS["adam"])} <= offsets
        assert {part.start for part in parts(layout, 5, OPTIMIZERS["lars"])} <= offsets

    def test_more_shards_than_parameters_are_refused_for_lars(self):
        layout = Layout.of(nn.Linear(8, 8), OPTIMIZERS["lars"])
        assert len(parts(layout, 5, OPTIMIZERS["adam"])) == 5
        with pytest.raises(
            ConfigError, match=r"server\.shards: the parameters' 80 elements .* into 5 slices"
        ):
            parts(layout, 5, OPTIMIZERS["lars"])

    def test_a_shard_with_half_a_parameter_is_refused_by_lars(self):
        layout = Layout.of(nn.Linear(8, 8), OPTIMIZERS["lars"])
        with pytest.raises(ValueError, match=r"range\(0, 32\) cuts weight"):
            Shard(layout, range(32), OPTIMIZERS["lars"], PlainSlots(32))


def small_shard(damping: DelayCompensation | None = None) -> Shard:
    """Sixteen parameters of 0, and SGD at any rate: what is applied is seen as it is."""
    layout = Layout.of(nn.Linear(4, 4, bias=False), PLAIN)
    shard = Shard(layout, range(16), PLAIN, PlainSlots(16), damping)
    shard.load(0, ShardState(torch.zeros(16), FlatState.begin(16, PLAIN)))
    return shard


def full(value: float) -> torch.Tensor:
    return torch.full((16,), value)


def parameter(shard: Shard) -> float:
    values = set(shard.state().parameters.tolist())
    assert len(values) == 1
    return values.pop()


class TestMean:
    @pytest.mark.parametrize("borrow", [True, False])
    def test_several_gradients_count_by_their_weights(self, borrow):
        shard = small_shard()
        for member, (value, weight) in enumerate([(8.0, 1.0), (4.0, 2.0), (-4.0, 5.0)]):
            shard.take(member, full(value), weight, borrow=borrow)
        shard.step(1, Scheduled(1.0))
        assert parameter(shard) == -(8 * 1 + 4 * 2 - 4 * 5) / 8

    @pytest.mark.parametrize("borrow", [True, False])
    def test_a_scaled_gradient_counts_less_and_weighs_as_much(self, borrow):
        shard = small_shard()
        pushed = [(8.0, 1.0, 0.5), (4.0, 2.0, 1.0), (-4.0, 5.0, 0.25)]
        for member, (value, weight, scale) in enumerate(pushed):
            shard.take(member, full(value), weight, borrow=borrow, scale=scale)
        shard.step(1, Scheduled(1.0))
        assert parameter(shard) == -(8 * 1 * 0.5 + 4 * 2 - 4 * 5 * 0.25) / 8

    def test_a_borrowed_gradient_that_is_scaled_stays_as_it_is(self):
        shard, lent = small_shard(), full(6.0)
        shard.take(0, lent, 1.0, borrow=True, scale=0.5)
        shard.step(1, Scheduled(1.0))
        assert parameter(shard) == -3.0
        assert (lent == 6.0).all()

    @pytest.mark.parametrize("weight", [0.3, 1.0, 48.0])
    @pytest.mark.parametrize("borrow", [True, False])
    def test_the_only_gradient_is_applied_to_the_bit_whatever_its_weight(self, weight, borrow):
        shard = small_shard()
        gradient = torch.randn(16, generator=torch.Generator().manual_seed(0))
        shard.take(0, gradient, weight, borrow=borrow)
        shard.step(1, Scheduled(1.0))
        assert torch.equal(shard.state().parameters, -gradient)

    def test_memory_that_is_not_borrowed_is_free_at_once(self):
        shard = small_shard()
        gradient = full(1.0)
        shard.take(0, gradient, 1.0)
        gradient.fill_(100.0)
        shard.take(1, gradient.fill_(3.0), 1.0)
        gradient.fill_(100.0)
        shard.step(1, Scheduled(1.0))
        assert parameter(shard) == -2.0

    def test_borrowed_memory_is_neither_copied_nor_changed(self):
        shard = small_shard()
        gradients = [full(1.0), full(3.0)]
        for member, gradient in enumerate(gradients):
            shard.take(member, gradient, 1.0, borrow=True)
        shard.step(1, Scheduled(1.0))
        assert [set(gradient.tolist()) for gradient in gradients] == [{1.0}, {3.0}]
        borrowed = full(100.0)
        shard.take(0, borrowed, 1.0, borrow=True)
        borrowed.fill_(5.0)
        shard.step(2, Scheduled(1.0))
        assert parameter(shard) == -2.0 - 5.0

    def test_every_step_begins_anew(self):
        shard = small_shard()
        for version, value in enumerate([1.0, 2.0, 4.0], 1):
            shard.take(0, full(value), 1.0)
            shard.take(1, full(value), 1.0)
            shard.step(version, Scheduled(1.0))
        assert parameter(shard) == -7.0

    def test_a_step_without_a_gradient_is_an_error(self):
        shard = small_shard()
        shard.take(0, full(1.0), 1.0)
        shard.step(1, Scheduled(1.0))
        with pytest.raises(RuntimeError, match="version 2 has no gradient"):
            shard.step(2, Scheduled(1.0))

    @pytest.mark.parametrize(("size", "weight"), [(15, 1.0), (16, 0.0), (16, -1.0), (16, float("nan"))])
    def test_what_cannot_be_a_part_of_the_mean_is_refused(self, size, weight):
        with pytest.raises(ValueError, match="expected 16 elements of weight above 0"):
            small_shard().take(0, torch.zeros(size), weight)


class TestVersions:
    class Watched(PlainSlots):
        """Writes down what is asked, and fills new memory with what must not be read."""

        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.calls: list[tuple[str, int]] = []

        def begin(self, version: int) -> torch.Tensor:
            self.calls.append(("begin", version))
            return super().begin(version).fill_(float("nan"))

        def commit(self, version: int) -> None:
            self.calls.append(("commit", version))
            super().commit(version)

    def test_each_is_made_in_new_memory_and_the_last_one_stays_as_it_was(self):
        slots = self.Watched(16)
        shard = Shard(Layout.of(nn.Linear(4, 4, bias=False), PLAIN), range(16), PLAIN, slots)
        shard.load(7, ShardState(full(1.0), FlatState.begin(16, PLAIN)))
        before = slots.current()
        shard.take(0, full(3.0), 1.0)
        shard.step(8, Scheduled(1.0))
        assert set(before.tolist()) == {1.0}
        assert set(slots.current().tolist()) == {-2.0}
        assert slots.calls == [("begin", 7), ("commit", 7), ("begin", 8), ("commit", 8)]

    def test_loading_forgets_gradients_taken_before(self):
        shard = small_shard()
        shard.take(0, full(1.0), 1.0)
        shard.load(3, ShardState(full(5.0), FlatState.begin(16, PLAIN)))
        with pytest.raises(RuntimeError, match="no gradient"):
            shard.step(4, Scheduled(1.0))

    def test_what_was_loaded_is_not_shared(self):
        settings = OPTIMIZERS["adam"]
        layout = Layout.of(nn.Linear(4, 4, bias=False), settings)
        shard = Shard(layout, range(16), settings, PlainSlots(16))
        state = ShardState(full(1.0), FlatState.begin(16, settings))
        shard.load(0, state)
        shard.take(0, full(1.0), 1.0)
        shard.step(1, Scheduled(1.0))
        assert set(state.parameters.tolist()) == {1.0}
        assert not state.optimizer.vectors["exp_avg"].any()
        assert (state.optimizer.scalars, shard.state().optimizer.scalars) == ({"step": 0.0}, {"step": 1.0})


class TestDelayCompensation:
    def test_a_gradient_is_compensated_from_what_was_read_to_what_is_newest(self):
        shard = small_shard(DelayCompensation(0.25, None))
        read = full(0.0)
        shard.take(0, full(-2.0), 1.0, base=read)
        shard.step(1, Scheduled(1.0))
        assert parameter(shard) == 2.0
        # 4 + 0.25 * 16 * (2 - 0) = 12
        shard.take(1, full(4.0), 1.0, base=read)
        shard.step(2, Scheduled(1.0))
        assert parameter(shard) == -10.0

    def test_several_are_each_compensated_before_their_mean_is_taken(self):
        shard = small_shard(DelayCompensation(1.0, None))
        gradients = [full(1.0), full(2.0), full(3.0)]
        for member, gradient in enumerate(gradients):
            shard.take(member, gradient, 2.0, base=full(-1.0), borrow=True)
        shard.step(1, Scheduled(1.0))
        # (1 + 1) + (2 + 4) + (3 + 9) = 20
        assert parameter(shard) == pytest.approx(-20 / 3)
        assert [gradient[0].item() for gradient in gradients] == [1.0, 2.0, 3.0]

    def test_without_the_parameters_that_were_read_it_is_refused(self):
        with pytest.raises(ValueError, match="needs the parameters"):
            small_shard(DelayCompensation(0.25, None)).take(0, full(1.0), 1.0)

    def test_the_mean_squares_are_part_of_the_state(self):
        shard = small_shard(DelayCompensation(2.0, 0.75))
        shard.take(1, full(4.0), 1.0, base=full(0.0))
        shard.step(1, Scheduled(1.0))
        saved = ShardState(full(9.0), FlatState.begin(16, PLAIN), {0: full(9.0), 1: full(9.0)})
        shard.export(saved)
        assert [(member, set(ms.tolist())) for member, ms in saved.mean_squares.items()] == [
            (0, {0.0}),
            (1, {4.0}),
        ]
        half = saved.part(range(8, 16))
        half.mean_squares[1].zero_()
        assert saved.mean_squares[1].tolist() == [4.0] * 8 + [0.0] * 8

        other = small_shard(DelayCompensation(2.0, 0.75))
        other.load(1, shard.state())
        for each in (shard, other):
            each.take(1, full(0.5), 1.0, base=full(0.0))
            each.step(2, Scheduled(1.0))
        assert torch.equal(shard.state().parameters, other.state().parameters)
        assert torch.equal(shard.state().mean_squares[1], other.state().mean_squares[1])
