"""Tests of the sums over a group: the real one over Gloo, and its twin of one worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.exchange.collective import Alone, Collective, TorchCollective, mean_in_place


@pytest.fixture
def gloo_of_one() -> Iterator[TorchCollective]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield TorchCollective()
    dist.destroy_process_group()


class Scripted:
    """A group in which the peers' contributions are given beforehand; counts its sums."""

    def __init__(self, *peers: float) -> None:
        self.workers = 1 + len(peers)
        self.peers = peers
        self.sums = 0

    def sum(self, values: Tensor) -> Tensor:
        self.sums += 1
        return values + sum(self.peers)

    def gather(self, values: Tensor) -> Tensor:
        return torch.stack([values, *(torch.full_like(values, peer) for peer in self.peers)])

    def barrier(self) -> None: ...


def check_a_group_of_one(group: Collective) -> None:
    values = torch.tensor([1.0, 2.0])
    assert group.workers == 1
    assert torch.equal(group.sum(values), values)
    assert torch.equal(group.gather(values), values.unsqueeze(0))
    group.barrier()


def test_alone_sums_to_itself() -> None:
    check_a_group_of_one(Alone())


def test_a_real_group_of_one_does_the_same(gloo_of_one: TorchCollective) -> None:
    check_a_group_of_one(gloo_of_one)


def test_a_sum_leaves_what_it_was_given_as_it_was(gloo_of_one: TorchCollective) -> None:
    values = torch.tensor([1.0, 2.0])
    gloo_of_one.sum(values).add_(1)
    assert torch.equal(values, torch.tensor([1.0, 2.0]))


def test_the_mean_replaces_each_tensor_in_its_own_shape() -> None:
    tensors = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor(5.0)]
    mean_in_place(Scripted(3.0, 5.0), tensors)
    assert torch.equal(tensors[0], torch.tensor([[3.0, 10 / 3], [11 / 3, 4.0]]))
    assert torch.equal(tensors[1], torch.tensor(13 / 3))


def test_the_mean_takes_one_sum_for_each_type_of_element() -> None:
    group = Scripted(2.0)
    tensors = [torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(4)]
    mean_in_place(group, tensors)
    assert group.sums == 2
    assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.float64, torch.float32]
    assert all(bool((tensor == 1).all()) for tensor in tensors)


def test_the_mean_of_nothing_needs_no_sum() -> None:
    group = Scripted(1.0)
    mean_in_place(group, [])
    assert group.sums == 0


@pytest.mark.processes
def test_two_processes_sum_and_gather_in_the_order_of_their_ranks_and_wait_for_rank_0_to_speak(
    tmp_path: Path,
) -> None:
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [
        context.Process(target=_one_of_two, args=(rank, tmp_path / "store", answers), daemon=True)
        for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    found = sorted(answers.get(timeout=50) for _ in workers)
    for worker in workers:
        worker.join(timeout=10)
    answers.close()
    answers.join_thread()
    assert found == [
        (0, [3.0, 30.0], [[1.0, 10.0], [2.0, 20.0]], b"at last"),
        (1, [3.0, 30.0], [[1.0, 10.0], [2.0, 20.0]], b"at last"),
    ]


LIMIT = timedelta(seconds=4)


def _one_of_two(rank: int, file: Path, answers: object) -> None:
    store = dist.FileStore(str(file), 2)
    # One may be quicker to start than the other by more than the limit.
    store.set(f"here/{rank}", "")
    store.wait(["here/0", "here/1"], timedelta(seconds=40))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=LIMIT)
    group = TorchCollective(patience=timedelta(seconds=40))
    own = torch.tensor([1.0, 10.0]) * (rank + 1)
    total, rows = group.sum(own).tolist(), group.gather(own).tolist()
    if rank == 0:
        # As long as the one to whom it speaks takes.
        threading.Event().wait(LIMIT.total_seconds() + 1)
    said = group.tell(b"at last" if rank == 0 else b"")
    answers.put((rank, total, rows, said))  # type: ignore[attr-defined]
    group.barrier()
    dist.destroy_process_group()
