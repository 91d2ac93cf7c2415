"""The weights that a run delivers load with one line, and are there whole or not at all."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dist_train.core import failpoint
from dist_train.core.weights import write_weights


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
