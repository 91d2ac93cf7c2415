"""Of what members leave with their gradients, that of the last one that is in for good counts."""

from __future__ import annotations

import pytest
import torch

from dist_train.exchange.deposits import Deposit, Deposits
from dist_train.exchange.segments import Segment
from dist_train.exchange.server import MemberMemory
from dist_train.rules.messages import FIRST, Push

SIZE, KEPT = 32, 2


@pytest.fixture
def segments():
    made: list[Segment] = []
    yield made
    for segment in made:
        segment.close()


def memory_of(segments, kept=KEPT):
    segments.append(Segment.create(MemberMemory.bytes(SIZE, 5, kept)))
    return MemberMemory(segments[-1], SIZE, 5, kept)


def push(member, deposit, step):
    return Push(member, 0, 1, 1, FIRST, 8, 0.5, deposit=deposit, scalars={"step": step})


def values(deposit):
    return [row[0].item() for row in deposit.rows], dict(deposit.scalars)


def test_all_that_is_in_a_members_memory_lies_apart(segments):
    memory = memory_of(segments)
    first, second = memory.deposits
    everything = [*memory.gradients, memory.statistics, *first, *second]
    for number, each in enumerate(everything, 1):
        each.fill_(number)
    assert len(everything) == 2 + 1 + 2 * KEPT
    assert [each.unique().tolist() for each in everything] == [[n] for n in range(1, len(everything) + 1)]


def test_the_last_that_is_in_counts_and_is_copied(segments):
    memory, deposits = memory_of(segments), Deposits()
    for slot, first in enumerate((1.0, 3.0)):
        for row, value in zip(memory.deposits[slot], (first, first + 1), strict=True):
            row.fill_(value)
    deposits.settled(push(0, 0, 5), memory)
    copied = deposits.copies()[0]
    deposits.settled(push(0, 1, 7), memory)
    memory.deposits[0][0].fill_(99)
    assert values(copied) == ([1, 2], {"step": 5})
    assert values(deposits.copies()[0]) == ([3, 4], {"step": 7})


def test_a_successor_gets_what_its_predecessor_left_rather_than_the_checkpoint(segments):
    before, after, deposits = memory_of(segments), memory_of(segments), Deposits()
    saved = Deposit((torch.full((SIZE,), 8.0), torch.full((SIZE,), 9.0)), {"step": 2.0})
    assert deposits.hand_over(0, before, saved) == {"step": 2}
    assert [row[0].item() for row in before.deposits[0]] == [8, 9]
    before.deposits[1][0].fill_(4)
    deposits.settled(push(0, 1, 6), before)
    assert deposits.hand_over(0, after, saved) == {"step": 6}
    assert [row[0].item() for row in after.deposits[0]] == [4, 0]


def test_after_a_loss_of_updates_what_was_kept_with_the_snapshot_counts(segments):
    memory, deposits = memory_of(segments), Deposits()
    memory.deposits[0][0].fill_(1)
    deposits.settled(push(0, 0, 5), memory)
    kept = deposits.copies()
    memory.deposits[1][0].fill_(2)
    deposits.settled(push(0, 1, 6), memory)
    deposits.go_back(kept)
    # Told of no place that counts, the member may write to either.
    for row in (*memory.deposits[0], *memory.deposits[1]):
        row.fill_(99)
    assert values(deposits.copies()[0]) == ([1, 0], {"step": 5})


def test_one_that_has_left_nothing_begins_anew(segments):
    deposits = Deposits()
    assert deposits.hand_over(0, memory_of(segments), None) is None
    assert deposits.copies() == {}


def test_where_nothing_is_kept_nothing_is_looked_for(segments):
    deposits, memory = Deposits(), memory_of(segments, kept=0)
    deposits.settled(push(0, 0, 1), memory)
    deposits.settled(Push(1, 0, 1, 1, FIRST, 8, 0.5), memory_of(segments))
    assert deposits.copies() == {}
    assert deposits.hand_over(0, memory, Deposit((), {})) is None
