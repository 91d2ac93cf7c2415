"""A state is learnt, chosen and counted; all of it comes back from a checkpoint, or none."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dist_train.core.checkpoint import Part
from dist_train.core.seeds import seed_all
from dist_train.core.state import Chosen, Counted, State, describe, join, load_tensors, part_of
from dist_train.core.tensor_files import snapshot
from dist_train.errors import ConfigError, TrainingError
from dist_train.rules.sampling import Cursor, Position, Run
from dist_train.rules.schedule import Rewarm

CPU = torch.device("cpu")


class Tied(nn.Module):
    """Input and output embedding are one tensor; batch norm has buffers."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, width)
        self.norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, 7, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("mask", torch.full((2,), float("-inf")))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, tokens):
        return self.out(self.norm(self.embed(tokens)))


def state_of(seed: int, model=None, **settings) -> State:
    torch.manual_seed(seed)
    model = model or Tied()
    settings = {"lr": 0.1, "momentum": 0.9} | settings
    return State(model, torch.optim.SGD(model.parameters(), **settings), CPU)


def train(state: State, updates: int = 2) -> None:
    for number in range(updates):
        state.optimizer.zero_grad()
        state.model(torch.arange(number, number + 4)).square().mean().backward()
        state.optimizer.step()


def kept(part: Part) -> Part:
    """Return what comes back of a part: copies, and values that went through JSON."""
    return Part(snapshot(part.tensors), json.loads(json.dumps(part.values)))


def trained() -> State:
    state = state_of(1)
    train(state)
    state.counted = Counted(2, 8, Position(1, 3), (Run(0, 4, 2), Run(1, 1, 1)))
    state.chosen = Chosen(0.25, 4, (Rewarm(4, 16, 0.5),))
    return state


def test_parameters_buffers_and_optimizer_come_back_and_go_on_alike():
    state, other = trained(), state_of(2)
    other.restore_shared(kept(state.shared_part()))
    other.restore_own(kept(state.own_part()), generators=False)
    for one in (state, other):
        train(one)
    for (name, left), right in zip(
        state.model.state_dict().items(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(left, right), name
    buffers = [one.optimizer.state[one.model.embed.weight]["momentum_buffer"] for one in (state, other)]
    assert torch.equal(*buffers)


def test_counts_and_choices_come_back():
    other = state_of(2)
    other.restore_shared(kept(trained().shared_part()))
    assert other.counted == Counted(2, 8, Position(1, 3), (Run(0, 4, 2), Run(1, 1, 1)))
    assert other.chosen == Chosen(0.25, 4, (Rewarm(4, 16, 0.5),))


def test_a_checkpoint_that_knows_of_no_unfinished_runs_has_none():
    part, other = kept(trained().shared_part()), state_of(2)
    del part.values["counted"]["unfinished"]
    other.restore_shared(part)
    assert other.counted == Counted(2, 8, Position(1, 3))


def test_the_cursor_is_the_position_and_what_is_unfinished_before_it():
    counted = Counted(2, 8, Position(1, 3), (Run(0, 4, 2),))
    assert counted.cursor == Cursor(Position(1, 3), (Run(0, 4, 2),))
    counted.cursor = Cursor(Position(2, 5), (Run(1, 6, 1),))
    assert counted == Counted(2, 8, Position(2, 5), (Run(1, 6, 1),))


def test_what_a_worker_holds_alone_is_its_buffers_and_generators():
    state, other = state_of(1), state_of(2)
    nn.init.constant_(state.model.norm.running_mean, 3.0)
    seed_all(5)
    own = kept(state.own_part())
    expected = torch.rand(3)
    assert other.restore_own(own, generators=True)
    assert torch.equal(torch.rand(3), expected)
    assert other.model.norm.running_mean.tolist() == [3] * 4


def test_generators_stay_where_they_are_not_asked_for():
    own = kept(state_of(1).own_part())
    seed_all(5)
    expected = torch.rand(3)
    seed_all(5)
    state_of_nothing = State(Tied(), torch.optim.SGD([nn.Parameter(torch.ones(1))]), CPU)
    seed_all(5)
    state_of_nothing.restore_own(own, generators=False)
    assert torch.equal(torch.rand(3), expected)


def test_a_part_without_generators_gives_its_buffers_and_says_that_it_has_no_more():
    state, other = state_of(1), state_of(2)
    nn.init.constant_(state.model.norm.running_mean, 3.0)
    own = kept(state.own_part())
    buffers = kept(join({"buffers": part_of(own, "buffers")}))
    seed_all(5)
    expected = torch.rand(3)
    seed_all(5)
    assert not other.restore_own(buffers, generators=True)
    assert torch.equal(torch.rand(3), expected)
    assert other.model.norm.running_mean.tolist() == [3] * 4


def test_settings_are_the_configurations_and_not_the_checkpoints():
    part = kept(trained().shared_part())
    other = state_of(2, lr=0.7, momentum=0.5, weight_decay=0.3)
    other.restore_shared(part)
    (group,) = other.optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.7, 0.5, 0.3)


def test_restoring_writes_into_the_tensors_that_are_there():
    other = state_of(2)
    before = {name: tensor.data_ptr() for name, tensor in other.tensors().items()}
    other.restore_shared(kept(trained().shared_part()))
    assert {name: tensor.data_ptr() for name, tensor in other.tensors().items()} == before


def test_tied_tensors_are_held_once_and_stay_tied():
    state = trained()
    names = state.tensors().keys()
    assert "embed.weight" in names
    assert "out.weight" not in names
    other = state_of(2)
    other.restore_shared(kept(state.shared_part()))
    assert other.model.out.weight is other.model.embed.weight
    assert torch.equal(other.model.out.weight, state.model.out.weight)


def test_only_parameters_must_be_finite():
    part = state_of(1).shared_part()
    assert part.finite == {"model.embed.weight", "model.norm.weight", "model.norm.bias"}
    assert part.finite < part.tensors.keys()
    assert "model.mask" in part.tensors


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (nn.Linear(2, 2, bias=False), r"it lacks \['bias'\] and has in addition nothing"),
        (nn.Sequential(nn.Linear(2, 2)), r"lacks \['bias', 'weight'\] .* addition \['0.bias', '0.weight'\]"),
        (nn.Linear(3, 2), r"weight has shape \(2, 3\) there and \(2, 2\) here; resume with the model"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name_and_changes_nothing(saved, message):
    state = state_of(1, nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    part = kept(state_of(2, saved).shared_part())
    with pytest.raises(ConfigError, match=message) as refusal:
        state.restore_shared(part)
    assert "the checkpoint is of another model" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, before[name])


def test_names_are_compared_before_anything_is_copied():
    target = torch.zeros(1)
    with pytest.raises(TrainingError):
        load_tensors({"a": target, "b": torch.zeros(2)}, {"a": torch.ones(1), "b": torch.ones(3)})
    assert target.item() == 0


def test_joined_parts_come_apart_again():
    one = Part({"x": torch.ones(1)}, {"count": 3}, frozenset({"x"}))
    two = Part({"x.y": torch.zeros(2)}, {})
    joined = join({"a": one, "a.x": two})
    assert joined.finite == {"a.x"}
    assert part_of(joined, "a.x").tensors.keys() == {"x.y"}
    assert part_of(joined, "a").values == {"count": 3}
    with pytest.raises(KeyError):
        part_of(joined, "b")


def test_a_description_tells_type_and_shape():
    tensors = {"w": torch.zeros(2, 3, dtype=torch.bfloat16), "n": torch.tensor(1)}
    assert describe(tensors) == {"w": "bfloat16 [2, 3]", "n": "int64 []"}
