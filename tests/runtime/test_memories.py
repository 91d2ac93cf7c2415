from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from dist_train.exchange.segments import Segment
from dist_train.exchange.server import MemberMemory
from dist_train.rules.messages import Push, Version
from dist_train.runtime.letters import Hello
from dist_train.runtime.memories import Memories, Parcel
from dist_train.runtime.ray_cluster import Ref
from dist_train.runtime.remote import ActorGone, Process, Unreachable

SIZE, STATISTICS = 32, 3


class PlainRef(Ref):
    """An array that is fetched from nowhere; None was lost on its way."""

    def fetch(self, timeout_s: float | None = None) -> np.ndarray:
        if self.handle is None:
            raise Unreachable("lost")
        array = np.array(self.handle, np.float32)
        array.flags.writeable = False
        return array


def hello(member: int, incarnation: int, segment: Segment | None) -> Hello:
    process = Process(os.getpid(), 1, "host", "node")
    address = None if segment is None else segment.address
    return Hello(member, incarnation, process, 1, 1, "32", address, 1)


def push(member: int, incarnation: int, buffer: int = 0) -> Push:
    return Push(member, incarnation, 1, 1, Version(0, 0), 4, 1.0, buffer=buffer)


def own_segment() -> Segment:
    return Segment.create(MemberMemory.bytes(SIZE, STATISTICS, base=True))


def test_a_member_of_this_node_is_read_where_it_writes_even_when_it_is_gone() -> None:
    memories, segment = Memories(SIZE, STATISTICS, 0, base=True), own_segment()
    attach = memories.meet(hello(0, 0, segment))
    own = MemberMemory(segment, SIZE, STATISTICS, base=True)
    own.gradients[1].fill_(5.0)
    own.statistics.fill_(7.0)
    segment.close()
    shard = MemberMemory(Segment.open(attach.memory), SIZE, attach.statistics, base=True)
    assert shard.gradients[1].eq(5.0).all()
    assert memories.statistics_of(push(0, 0)).eq(7.0).all()


@pytest.mark.parametrize("base", [None, np.full(SIZE, 2.0)])
def test_what_a_member_of_another_node_sends_lies_where_shards_look(base: np.ndarray | None) -> None:
    memories = Memories(SIZE, STATISTICS, 0, base=True)
    attach = memories.meet(hello(0, 0, None))
    statistics = np.arange(STATISTICS, dtype=np.float64)
    parcel = Parcel(PlainRef(np.full(SIZE, 3.0)), None if base is None else PlainRef(base), statistics)
    memories.receive(push(0, 0, buffer=1), parcel)
    shard = MemberMemory(Segment.open(attach.memory), SIZE, attach.statistics, base=True)
    assert shard.gradients[0].eq(0.0).all()
    assert shard.gradients[1].eq(3.0).all()
    assert shard.parameters.eq(0.0 if base is None else 2.0).all()
    assert torch.equal(memories.statistics_of(push(0, 0)), torch.from_numpy(statistics))


def test_what_a_member_of_another_node_keeps_for_itself_is_there_for_checkpoints_and_its_successor() -> None:
    memories = Memories(SIZE, STATISTICS, 2, base=False)
    memories.meet(hello(0, 0, None))
    statistics = np.zeros(STATISTICS)
    for deposit, value in ((0, 1.0), (1, 2.0)):
        rows = tuple(PlainRef(np.full(SIZE, value + row)) for row in range(2))
        sent = replace(push(0, 0), deposit=deposit, scalars={"step": value})
        memories.receive(sent, Parcel(PlainRef(np.zeros(SIZE)), None, statistics, rows))
        memories.settled(sent)
    # Without a state of its own, as with plain descent, or where it does not say where.
    memories.receive(push(0, 0), Parcel(PlainRef(np.zeros(SIZE)), None, statistics))
    memories.settled(push(0, 0))
    left = memories.deposits.copies()[0]
    assert [row[0].item() for row in left.rows] == [2.0, 3.0]

    assert memories.handed_over(0, 1) == []
    memories.meet(hello(0, 1, None))
    assert memories.hand_over(hello(0, 1, None), None) == {"step": 2.0}
    assert [row[0].item() for row in memories.handed_over(0, 1)] == [2.0, 3.0]


def test_what_is_lost_on_its_way_is_not_there() -> None:
    memories = Memories(SIZE, STATISTICS, 0, base=True)
    memories.meet(hello(0, 0, None))
    with pytest.raises(Unreachable):
        memories.receive(push(0, 0), Parcel(PlainRef(None), None, np.zeros(STATISTICS)))


def test_a_predecessors_memory_is_there_until_its_successors_gradient_is_in() -> None:
    memories = Memories(SIZE, STATISTICS, 0, base=True)
    first, second, other = own_segment(), own_segment(), own_segment()
    for attach in (hello(0, 0, first), hello(0, 1, second), hello(1, 0, other)):
        memories.meet(attach)
    assert [each.incarnation for each in memories.attachments()] == [0, 1, 0]
    memories.settled(push(0, 0))
    assert len(memories.attachments()) == 3
    memories.settled(push(0, 1))
    assert [(each.member, each.incarnation) for each in memories.attachments()] == [(0, 1), (1, 0)]
    assert not memories.knows(push(0, 0))
    with pytest.raises(ActorGone, match="another process has taken the place of member 0"):
        memories.receive(push(0, 0), Parcel(PlainRef(np.zeros(SIZE)), None, np.zeros(STATISTICS)))


def test_a_member_may_introduce_itself_twice() -> None:
    memories, segment = Memories(SIZE, STATISTICS, 0, base=True), own_segment()
    assert memories.meet(hello(0, 0, segment)) == memories.meet(hello(0, 0, segment))
