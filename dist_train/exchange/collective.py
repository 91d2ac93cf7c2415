"""Sums over the workers of a group: the protocol, torch's implementation, and the twin for one worker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Collective(Protocol):
    """What the workers of one group compute together; every verb is called by all of them in one order."""

    workers: int

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over the workers, in the shape and type given."""

    def gather(self, values: Tensor) -> Tensor:
        """Return the workers' vectors of length n as rows of a (workers, n) tensor on the CPU."""

    def tell(self, said: bytes) -> bytes:
        """Return what worker 0 says, on every worker."""

    def barrier(self) -> None:
        """Return when all workers have come here."""


class Alone:
    """A group of one worker."""

    workers = 1

    def sum(self, values: Tensor) -> Tensor:
        return values

    def gather(self, values: Tensor) -> Tensor:
        return values.unsqueeze(0).cpu()

    def tell(self, said: bytes) -> bytes:
        return said

    def barrier(self) -> None:
        return None


class TorchCollective:
    """The default process group of torch.distributed (Gloo on CPUs, NCCL on GPUs).

    ``patience``: how long worker 0 may take to say something, where that is longer than the group's timeout.
    """

    def __init__(self, patience: timedelta | None = None) -> None:
        self.workers = dist.get_world_size()
        self._patient = None if patience is None else dist.new_group(backend="gloo", timeout=patience)

    def sum(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, values: Tensor) -> Tensor:
        rows = [torch.empty_like(values) for _ in range(self.workers)]
        dist.all_gather(rows, values)
        return torch.stack(rows).cpu()

    def tell(self, said: bytes) -> bytes:
        length = torch.tensor([len(said)])
        dist.broadcast(length, 0, self._patient)
        content = torch.zeros(int(length), dtype=torch.uint8)
        if dist.get_rank() == 0:
            content.copy_(torch.frombuffer(bytearray(said), dtype=torch.uint8))
        dist.broadcast(content, 0, self._patient)
        return content.numpy().tobytes()

    def barrier(self) -> None:
        dist.barrier()


def mean_in_place(collective: Collective, tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the workers, with one sum for each type of element."""
    # In the order of the tensors, which is the same on every worker; that of a set would not be.
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = collective.sum(torch.cat([tensor.reshape(-1) for tensor in same])) / collective.workers
        for tensor, piece in zip(same, torch.split(flat, [tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(piece.view_as(tensor))
