"""The weights that a run delivers load with one line, and are there whole or not at all."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dist_train.core import failpoint
from dist_train.core.weights import load_weights, write_weights
from dist_train.errors import ConfigError


class Model(nn.Module):
    """Tied weights, images in another layout, buffers of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.embed.weight
        self.image = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.half = nn.Linear(2, 2).to(torch.bfloat16)
        self.register_buffer("average", torch.rand(3, dtype=torch.bfloat16))
        self.register_buffer("transposed", torch.rand(2, 3).T)
        self.register_buffer("nothing", torch.empty(0))
        self.register_buffer("scratch", torch.rand(2), persistent=False)


def test_a_fresh_model_loads_every_name(tmp_path):
    model, other = Model(), Model()
    write_weights(model, tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    saved, loaded = model.state_dict(), other.state_dict()
    assert "out.weight" in loaded
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    assert other.out.weight is other.embed.weight


def test_writing_leaves_the_model_as_it_is(tmp_path):
    model = Model()
    write_weights(model, tmp_path / "model.safetensors")
    assert model.image.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.image.weight.requires_grad


def test_later_weights_replace_earlier_ones_and_leave_nothing_else(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights(Model(), path)
    model = Model()
    write_weights(model, path)
    assert torch.equal(load_file(path)["embed.weight"], model.embed.weight)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("point", ["file opened", "file written", "file durable"])
def test_a_failure_leaves_the_earlier_weights_and_the_next_try_succeeds(tmp_path, monkeypatch, point):
    path = tmp_path / "model.safetensors"
    write_weights(Model(), path)
    before = path.read_bytes()

    def strike(name):
        if name == point:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(failpoint, "strike", strike)
    with pytest.raises(OSError, match="No space left"):
        write_weights(Model(), path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    write_weights(Model(), path)
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]


def test_loading_gives_a_model_all_that_was_written(tmp_path):
    model, other = Model(), Model()
    write_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert other.out.weight is other.embed.weight
    assert other.image.weight.is_contiguous(memory_format=torch.channels_last)


class Counting(nn.Linear):
    """Holds a state that is no tensor."""

    def get_extra_state(self):
        return {"calls": 0}

    def set_extra_state(self, state):
        raise AssertionError("no file of weights holds it")


def test_what_is_no_tensor_is_not_missed(tmp_path):
    write_weights(Counting(2, 3), tmp_path / "model.safetensors")
    load_weights(Counting(2, 3), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("written", "model", "words"),
    [
        (nn.Linear(2, 3, bias=False), nn.Linear(2, 3), "it lacks bias;"),
        (nn.Linear(2, 3), nn.Linear(2, 3, bias=False), "it has in addition bias;"),
        (nn.Linear(2, 3), nn.Linear(4, 3), r"weight has shape \[3, 2\] there and \[3, 4\] here;"),
    ],
)
def test_weights_of_another_model_are_refused_in_one_line(tmp_path, written, model, words):
    path = tmp_path / "model.safetensors"
    write_weights(written, path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=words) as refused:
        load_weights(model, path)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{path}: the weights are of another model: ")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_that_is_not_whole_is_refused_in_one_line(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights(Model(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="not a whole safetensors file") as refused:
        load_weights(Model(), path)
    assert "\n" not in str(refused.value)
