"""Memory of the coordinator that outlives any shard: whole states of the server, and a version held still."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_train.exchange.segments import Segment, aligned


@dataclass(frozen=True)
class Vectors:
    """How large a state is: ``size`` elements of parameters, as many for each name in ``keys``, and the mean
    squares of each of ``members``."""

    size: int
    keys: tuple[str, ...]
    members: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return 1 + len(self.keys) + len(self.members)

    @property
    def bytes(self) -> int:
        return self.count * aligned(4 * self.size)


@dataclass(frozen=True)
class Area:
    """One state in shared memory: the parameters, the optimizer's vectors, the members' mean squares."""

    parameters: Tensor
    optimizer: dict[str, Tensor]
    mean_squares: dict[int, Tensor]


def areas(segment: Segment, vectors: Vectors, count: int) -> list[Area]:
    """Lay ``count`` states out in a segment of ``count * vectors.bytes``."""
    stride = aligned(4 * vectors.size)
    found: list[Area] = []
    for number in range(count):
        start = number * vectors.bytes
        rows = [
            segment.tensor(torch.float32, start + row * stride, vectors.size) for row in range(vectors.count)
        ]
        keyed = dict(zip(vectors.keys, rows[1:], strict=False))
        squares = dict(zip(vectors.members, rows[1 + len(vectors.keys) :], strict=True))
        found.append(Area(rows[0], keyed, squares))
    return found


def held_bytes(size: int, statistics: int) -> int:
    """Return how large the segment is that holds a version for a validation, and its statistics."""
    return aligned(4 * size) + aligned(8 * statistics)


def held(segment: Segment, size: int, statistics: int) -> tuple[Tensor, Tensor]:
    """Return the held parameters, and the float64 vector of statistics that belongs to them."""
    parameters = segment.tensor(torch.float32, 0, size)
    if not statistics:
        return parameters, torch.empty(0, dtype=torch.float64)
    return parameters, segment.tensor(torch.float64, aligned(4 * size), statistics)


def checksum(tensors: Sequence[Tensor]) -> int:
    """Return a number that differs when a bit does, nearly always: CRC-32 of the bytes."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.numpy().data.cast("B"), value)
    return value
