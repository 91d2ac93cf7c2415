"""A worker's way to its parameter server: what it announces and hears, reads and writes.

The protocol, the memory through which tensors travel, and the turn that a member is at. The in-process twin
is in ``twin.py``, the real one in ``runtime/remote_server.py``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dist_train.exchange.segments import Segment, aligned
from dist_train.rules.messages import Lease, Measured, Push, Reply, ValidationPart, Version, Work

# Gradient buffers of a member: one may still be read while the next is written.
BUFFERS = 2


class MemberMemory:
    """What a member shares with its server: gradient buffers, its buffers' values, deposits, its parameters.

    ``size`` is the layout's, ``statistics`` the number of buffered values. With ``base`` the parameters lie
    where the server can read them, as delay compensation needs to know what a gradient was computed from.
    With local steps there are two deposits, each of ``kept`` vectors (deposits.py).
    """

    def __init__(
        self, segment: Segment, size: int, statistics: int, kept: int = 0, base: bool = False
    ) -> None:
        self.segment = segment
        stride, vectors = aligned(4 * size), BUFFERS + base
        self.gradients = [segment.tensor(torch.float32, number * stride, size) for number in range(BUFFERS)]
        self.parameters = segment.tensor(torch.float32, BUFFERS * stride, size) if base else None
        start = vectors * stride
        self.statistics = (
            segment.tensor(torch.float64, start, statistics)
            if statistics
            else torch.empty(0, dtype=torch.float64)
        )
        start += aligned(8 * statistics)
        rows = [segment.tensor(torch.float32, start + row * stride, size) for row in range(BUFFERS * kept)]
        self.deposits = [rows[:kept], rows[kept:]] if kept else []

    def with_own_statistics(self) -> MemberMemory:
        """Return the same memory but for the buffers' values, which are this process's alone."""
        own = copy(self)
        own.statistics = torch.empty_like(self.statistics)
        return own

    @staticmethod
    def bytes(size: int, statistics: int, kept: int = 0, base: bool = False) -> int:
        """Return how large the segment must be."""
        return (BUFFERS * (1 + kept) + base) * aligned(4 * size) + aligned(8 * statistics)


@dataclass(frozen=True)
class Sizes:
    """What a member knows of data and model, the same with all; ``parameters`` describes them."""

    train: int
    validation: int
    parameters: str


@dataclass(frozen=True)
class Welcome:
    """What a member begins with: the seed of the order of samples, and the values of its buffers.

    ``scalars`` belong to the state of its own that lies in the first deposit; None: it has none yet.
    """

    seed: int
    statistics: Tensor
    scalars: Mapping[str, float] | None = None


class Server(Protocol):
    """A member's parameter server. The verbs that speak wait for the answer, and may be repeated."""

    memory: MemberMemory

    @property
    def reads_in_place(self) -> bool:
        """Whether the member may compute on the server's own memory (``read_in_place``)."""

    def enlist(self, sizes: Sizes) -> Welcome:
        """Introduce the member's process; raises Mismatch where its data or model are not the others'."""

    def join(self, ahead: int) -> Reply:
        """Take the member's place; ``ahead`` leases keep it busy."""

    def push(self, push: Push) -> Reply:
        """Announce a gradient that lies in the memory's buffer ``push.buffer``."""

    def measured(self, measured: Measured) -> Reply:
        """Hand in a part of a validation."""

    def read(self, at_least: Version, into: Tensor) -> Version:
        """Copy the newest parameters that all shards have, at least ``at_least``; say which they are."""

    def read_in_place(self, at_least: Version) -> tuple[Version, Tensor]:
        """Return the newest parameters, at least ``at_least``, where they lie: not to be written to.

        They stay as they are until the next call.
        """

    def read_exactly(self, version: Version, into: Tensor) -> bool:
        """Copy these parameters and no others; False when they are not there any more."""

    def read_held(self, parameters: Tensor, statistics: Tensor) -> None:
        """Copy the version that is held for a validation, and the buffers that belong to it."""


@dataclass(frozen=True)
class Share:
    """What one worker of a group hands in of the gradient: some parameters, by number, and their elements."""

    parameters: slice
    elements: slice


ALL = Share(slice(None), slice(None))


class Flat(Protocol):
    """The model as one vector, as far as an exchange needs it."""

    @property
    def host(self) -> Tensor: ...

    def may_be_shared(self) -> bool: ...

    def compute_on(self, vector: Tensor) -> None: ...

    def watch(self) -> None: ...

    def expect_gradient(self, out: Tensor) -> None: ...

    def gradient_into(
        self, out: Tensor, part: slice = ..., weight: float = 1.0, add: bool = False
    ) -> bool: ...

    def statistics_into(self, out: Tensor) -> None: ...

    def take_statistics(self, vector: Tensor) -> None: ...

    def collect(self) -> Tensor: ...

    def arrived(self) -> None: ...


class Inner(Protocol):
    """What a member with local steps keeps for itself (core/inner_state.py)."""

    def leave(self, rows: Sequence[Tensor]) -> Mapping[str, float]:
        """Copy it into a deposit, and return the scalars that belong to it."""


@dataclass(frozen=True)
class Figures:
    """What a member measured: its loss summed over samples, its own seconds by phase, its peak memory."""

    loss: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory_mb: float = 0.0
    gradient_norm: float | None = None
    # As in messages.Push.
    agreement: float | None = None
    teachers: tuple[tuple[int, int], ...] = ()
    without: tuple[int, ...] = ()


@dataclass
class Turn:
    """Where a member is: who it is, what it has in hand, what it last heard.

    ``ahead`` leases keep it busy. A lease is trained in ``parts`` steps; ``part`` is the one under way.
    """

    member: int
    incarnation: int
    ahead: int = 1
    parts: int = 1
    part: int = 0
    is_last: bool = True
    # The part's share of the lease's samples.
    weight: float = 1.0
    steps: int = 0
    sequence: int = 0
    version: Version = field(default_factory=lambda: Version(0, 0))
    work: deque[Work] = field(default_factory=deque)
    # Tells what the member measured since its last push.
    figures: Callable[[], Figures] = Figures
    reply: Reply | None = None
    # What was read since the last push.
    reads: list[Version] = field(default_factory=list)

    @property
    def lease(self) -> Lease:
        return self.work[0].lease

    @property
    def newest(self) -> Version:
        """The newest version heard of."""
        return self.version if self.reply is None else max(self.version, self.reply.version)

    @property
    def was_overtaken(self) -> bool:
        """Whether the last gradient did not count, as others were faster."""
        return self.reply is not None and self.reply.outcome in ("dropped", "void")

    @property
    def counted(self) -> bool:
        """Whether the last gradient counts."""
        return self.reply is not None and self.reply.outcome == "counted"

    @property
    def was_refused(self) -> bool:
        """Whether the last gradient did not count, as it was not finite."""
        return self.reply is not None and self.reply.outcome == "refused"

    @property
    def buffer(self) -> int:
        return self.sequence % BUFFERS

    def read(self, server: Server, into: Tensor) -> None:
        """Have the newest parameters copied, and remember which they are."""
        self.version = server.read(self.newest, into)
        self.reads.append(self.version)

    def join(self, server: Server, flat: Flat) -> None:
        """Take the member's place, and begin from the newest parameters."""
        self.heard(server.join(self.ahead))
        self.go_on(server, flat)

    def go_on(self, server: Server, flat: Flat) -> None:
        """Give the model the newest parameters: where they lie, if it may be, or else a copy."""
        if server.reads_in_place and flat.may_be_shared():
            self.version, vector = server.read_in_place(self.newest)
            self.reads.append(self.version)
            flat.compute_on(vector)
            return
        self.read(server, flat.host)
        flat.arrived()
        if server.reads_in_place:
            flat.watch()

    def push(self, finite: bool) -> Push:
        """Return the announcement of the gradient of the lease in hand, which is hereby done with."""
        self.sequence += 1
        lease = self.work.popleft().lease
        figures = self.figures()
        reads, self.reads = tuple(self.reads), []
        return Push(
            member=self.member,
            incarnation=self.incarnation,
            sequence=self.sequence,
            lease=lease.number,
            version=self.version,
            samples=lease.count,
            loss=figures.loss,
            finite=finite and math.isfinite(figures.loss),
            buffer=(self.sequence - 1) % BUFFERS,
            reads=reads,
            seconds=figures.seconds,
            memory_mb=figures.memory_mb,
            gradient_norm=figures.gradient_norm,
            agreement=figures.agreement,
            teachers=figures.teachers,
            without=figures.without,
        )

    def measured(self, part: ValidationPart, sums: dict[str, float], samples: float) -> Measured:
        self.sequence += 1
        return Measured(self.member, self.incarnation, self.sequence, part.job, part.part, sums, samples)

    def heard(self, reply: Reply) -> None:
        """Take an answer: what it brings to do comes after what is in hand."""
        if reply.forget:
            self.work.clear()
        self.work.extend(reply.work)
        self.reply = reply


def settle_statistics(turn: Turn, flat: Flat, pushed: Tensor, sound: Tensor) -> None:
    """Keep in ``sound`` the buffers' values that were ``pushed``; after a refusal, go back to those in it.

    A batch whose gradient is not finite may have left NaN in the running statistics, which stays.
    """
    if turn.was_refused:
        flat.take_statistics(sound)
    else:
        sound.copy_(pushed)
