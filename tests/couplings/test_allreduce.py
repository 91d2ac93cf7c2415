"""All-reduce as a coupling: what it minimises, how it wraps the model, what it refuses."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_train.config.schema import Parallel
from dist_train.couplings.allreduce import AllReduce
from dist_train.errors import ConfigError


@pytest.fixture
def group() -> Iterator[None]:
    """A group of this process alone: what DistributedDataParallel needs to wrap a model."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    # DDP must not be the last to let go of the group: its end could wait for a thread that waits for Python.
    gc.collect()
    dist.destroy_process_group()


def model_of(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def wrapped(**settings) -> DistributedDataParallel:
    module = AllReduce(Parallel(**settings), 0, 2).start(model_of()).module
    assert isinstance(module, DistributedDataParallel)
    return module


def test_a_worker_minimises_its_share_times_the_number_of_workers():
    loss = torch.tensor(6.0, requires_grad=True)
    objective = AllReduce(Parallel(), 1, 4).objective(loss, loss, None, 3 / 8)
    assert objective.item() == 6 * 4 * 3 / 8
    objective.backward()
    assert loss.grad.item() == 1.5


@pytest.mark.parametrize("sizes", [[4, 4], [5, 3], [8, 0], [1, 2, 6]])
def test_the_mean_of_the_objectives_is_the_mean_loss_over_all_samples(sizes):
    losses = [torch.tensor(10.0 * number) for number, _ in enumerate(sizes, 1)]
    workers, count = len(sizes), sum(sizes)
    objectives = [
        AllReduce(Parallel(), rank, workers).objective(loss, loss, None, size / count)
        for rank, (loss, size) in enumerate(zip(losses, sizes, strict=True))
    ]
    by_samples = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / count
    assert sum(objectives).item() / workers == pytest.approx(by_samples.item())


def test_one_worker_is_not_wrapped():
    model = model_of()
    started = AllReduce(Parallel(), 0, 1).start(model)
    assert started.module is model
    with started.local():
        pass


def test_several_workers_share_gradients_and_keep_their_own_buffers(group):
    module = wrapped()
    assert not module.broadcast_buffers
    assert module.gradient_as_bucket_view
    module(torch.rand(4, 2)).sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    bucket = {gradient.untyped_storage().data_ptr() for gradient in gradients}
    assert len(bucket) == 1


def test_the_size_of_a_bucket_is_the_configurations(group):
    assert wrapped(bucket_mb=3.0).bucket_bytes_cap == 3 * 2**20


def test_a_local_pass_exchanges_nothing(group):
    started = AllReduce(Parallel(), 0, 2).start(model_of())
    assert started.module.require_backward_grad_sync
    with started.local():
        assert not started.module.require_backward_grad_sync
    assert started.module.require_backward_grad_sync


@pytest.mark.parametrize("compression", ["none", "bf16"])
def test_gradients_travel_in_the_type_asked_for(group, compression):
    module = wrapped(compression=compression)
    torch.manual_seed(0)
    inputs = torch.rand(4, 2)
    loss = (module(inputs) * torch.rand(4, 3)).sum()
    expected = torch.autograd.grad((module.module(inputs) * torch.rand(4, 3)).sum(), module.parameters())
    assert any(not torch.equal(gradient, gradient.bfloat16().float()) for gradient in expected)
    loss.backward()
    rounded = [torch.equal(p.grad, p.grad.bfloat16().float()) for p in module.parameters()]
    assert all(rounded) == (compression == "bf16")


def test_synchronised_batch_norm_is_refused_on_the_cpu(group):
    with pytest.raises(ConfigError, match=r"parallel\.sync_batch_norm: .* GPUs only; set it to false"):
        AllReduce(Parallel(sync_batch_norm=True), 0, 2).start(model_of())


def test_synchronised_batch_norm_is_nothing_to_a_single_worker():
    model = model_of()
    assert AllReduce(Parallel(sync_batch_norm=True), 0, 1).start(model).module is model


def test_rank_0_alone_writes_what_all_restore():
    assert [AllReduce(Parallel(), rank, 3).writes for rank in range(3)] == [True, False, False]


def test_an_update_is_one_s_own_and_a_validation_changes_nothing():
    applied = []
    coupling = AllReduce(Parallel(), 0, 2)
    coupling.update(lambda: applied.append(1))
    assert applied == [1]
    assert coupling.observe({"loss": 1.0}) is None
