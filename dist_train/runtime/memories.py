"""The members' memory as the server's node sees it: their own or, of members on other nodes, a mirror."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dist_train.exchange.deposits import Deposit, Deposits
from dist_train.exchange.segments import Segment
from dist_train.exchange.server import MemberMemory
from dist_train.rules.messages import Push
from dist_train.runtime.commands import Attach
from dist_train.runtime.letters import Hello
from dist_train.runtime.ray_cluster import Ref
from dist_train.runtime.remote import ActorGone

# A member and its incarnation.
Process = tuple[int, int]


@dataclass(frozen=True)
class Parcel:
    """A gradient on its way between nodes; ``base`` is what it was computed from, where that is asked for.

    ``deposit``: with local steps, what the member keeps for itself, vector by vector.
    """

    gradient: Ref
    base: Ref | None
    statistics: NDArray[np.float64]
    deposit: tuple[Ref, ...] = ()


class Memories:
    """Held by the coordinator, so that what a member handed in stays to be had when its process is gone."""

    def __init__(self, size: int, statistics: int, kept: int, base: bool) -> None:
        self._size = size
        self._statistics = statistics
        self._kept = kept
        self._base = base
        self.deposits = Deposits()
        self._held: dict[Process, MemberMemory] = {}
        # To meet a process takes long: it is done beside the coordinator's loop.
        self._meeting = threading.Lock()

    def meet(self, hello: Hello) -> Attach:
        """Open a member's memory, or make room for what it will send; say how shards open it."""
        who = hello.member, hello.incarnation
        with self._meeting:
            memory = self._held.get(who) or self._opened(hello)
            self._held[who] = memory
        return self._attach(who, memory)

    def _opened(self, hello: Hello) -> MemberMemory:
        sizes = self._size, self._statistics, self._kept, self._base
        if hello.memory is None:
            return MemberMemory(Segment.create(MemberMemory.bytes(*sizes)), *sizes)
        return MemberMemory(Segment.open(hello.memory), *sizes)

    def hand_over(self, hello: Hello, saved: Deposit | None) -> Mapping[str, float] | None:
        """Give a process what its predecessor kept for itself, or else the checkpoint; return its scalars."""
        memory = self._held.get((hello.member, hello.incarnation))
        if memory is None:  # another process has taken its place
            return None
        return self.deposits.hand_over(hello.member, memory, saved)

    def handed_over(self, member: int, incarnation: int) -> list[Tensor]:
        """Return what ``hand_over`` left for a process on another node, which fetches it; [] if nothing."""
        memory = self._held.get((member, incarnation))
        return memory.deposits[0] if memory is not None and memory.deposits else []

    def receive(self, push: Push, parcel: Parcel) -> None:
        """Put what came from another node where shards look for it; Unreachable if it is lost on the way."""
        memory = self._of(push)
        np.copyto(memory.gradients[push.buffer].numpy(), parcel.gradient.fetch())
        if parcel.base is not None and memory.parameters is not None:
            np.copyto(memory.parameters.numpy(), parcel.base.fetch())
        if parcel.deposit and push.deposit is not None:
            for row, sent in zip(memory.deposits[push.deposit], parcel.deposit, strict=True):
                np.copyto(row.numpy(), sent.fetch())
        np.copyto(memory.statistics.numpy(), parcel.statistics)

    def statistics_of(self, push: Push) -> Tensor:
        """Return the values of the member's buffers that came with a push."""
        return self._of(push).statistics

    def knows(self, push: Push) -> bool:
        return (push.member, push.incarnation) in self._held

    def settled(self, push: Push) -> None:
        """Take note that a gradient is in; let go of the memory of those whose place its sender has taken."""
        if self.knows(push):
            self.deposits.settled(push, self._of(push))
        for member, incarnation in list(self._held):
            if member == push.member and incarnation < push.incarnation:
                del self._held[member, incarnation]

    def attachments(self) -> list[Attach]:
        """Say how a new shard opens all there is."""
        return [self._attach(who, memory) for who, memory in list(self._held.items())]

    def _attach(self, who: Process, memory: MemberMemory) -> Attach:
        # By the coordinator's own address: the member may end before the shard opens it.
        return Attach(*who, memory.segment.address, self._statistics)

    def _of(self, push: Push) -> MemberMemory:
        try:
            return self._held[push.member, push.incarnation]
        except KeyError:
            raise ActorGone(f"another process has taken the place of member {push.member}") from None
