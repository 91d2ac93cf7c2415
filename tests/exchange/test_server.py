"""Tests of a member's way to its server: the memory they share, and the turn that the member is at."""

from __future__ import annotations

import math
from contextlib import closing

import pytest

from dist_train.exchange.segments import Segment
from dist_train.exchange.server import BUFFERS, Figures, MemberMemory, Turn
from dist_train.rules.messages import Lease, Reply, ValidationPart, Version, Work


def work(number, count=4):
    return Work(Lease(number, 0, 10 * number, count))


def turn(*numbers, **fields):
    made = Turn(2, 1, **fields)
    made.heard(Reply("welcome", Version(0, 5), tuple(work(number) for number in numbers)))
    return made


class TestMemory:
    @pytest.mark.parametrize("base", [True, False])
    @pytest.mark.parametrize(("size", "statistics", "kept"), [(16, 0, 0), (37, 5, 0), (48, 3, 2), (5, 0, 3)])
    def test_nothing_lies_on_anything_else(self, size, statistics, kept, base):
        with closing(Segment.create(MemberMemory.bytes(size, statistics, kept, base))) as segment:
            memory = MemberMemory(segment, size, statistics, kept, base)
            deposits = [row for deposit in memory.deposits for row in deposit]
            vectors = [*memory.gradients, *([memory.parameters] if base else []), *deposits]
            assert len(vectors) == BUFFERS + base + 2 * kept
            for number, vector in enumerate([*vectors, memory.statistics]):
                vector.fill_(number)
            for number, vector in enumerate(vectors):
                assert vector.shape == (size,)
                assert (vector == number).all()
            assert memory.statistics.shape == (statistics,)
            assert (memory.statistics == len(vectors)).all()

    def test_the_server_sees_what_the_member_writes(self):
        with closing(Segment.create(MemberMemory.bytes(16, 2))) as segment:
            mine, theirs = (MemberMemory(Segment.open(segment.address), 16, 2) for _ in range(2))
            mine.gradients[1].fill_(3.0)
            mine.statistics.fill_(2.0**53 - 1)
            assert (theirs.gradients[1] == 3.0).all()
            assert (theirs.statistics == 2.0**53 - 1).all()


class TestTurn:
    def test_a_push_is_of_the_lease_in_hand_which_is_then_done_with(self):
        at = turn(7, 8)
        at.version = Version(0, 5)
        push = at.push(finite=True)
        assert (push.member, push.incarnation, push.sequence) == (2, 1, 1)
        assert (push.lease, push.samples, push.version) == (7, 4, Version(0, 5))
        assert at.lease.number == 8

    def test_pushes_are_written_to_the_buffers_in_turn(self):
        at = turn(1, 2, 3)
        told = []
        for _ in range(3):
            written = at.buffer
            assert at.push(finite=True).buffer == written
            told.append(written)
        assert told == [0, 1, 0]

    def test_a_push_carries_what_was_measured(self):
        at = turn(1)
        at.figures = lambda: Figures(6.0, {"forward": 0.5}, 100.0, 2.5)
        push = at.push(finite=True)
        assert (push.loss, push.seconds, push.memory_mb) == (6.0, {"forward": 0.5}, 100.0)
        assert push.gradient_norm == 2.5

    @pytest.mark.parametrize(
        ("finite", "loss", "said"), [(True, 1.0, True), (False, 1.0, False), (True, math.inf, False)]
    )
    def test_neither_loss_nor_gradient_may_be_infinite(self, finite, loss, said):
        at = turn(1)
        at.figures = lambda: Figures(loss)
        assert at.push(finite).finite is said

    def test_a_part_of_a_validation_counts_as_a_message(self):
        at = turn(1, 2)
        at.push(finite=True)
        measured = at.measured(ValidationPart(3, 100, 1, 2), {"loss": 2.0}, 8.0)
        assert (measured.sequence, measured.job, measured.part, measured.samples) == (2, 3, 1, 8.0)
        assert at.push(finite=True).sequence == 3

    def test_new_work_comes_after_what_is_in_hand(self):
        at = turn(1)
        at.heard(Reply("counted", Version(0, 6), (work(2), work(3))))
        assert [each.lease.number for each in at.work] == [1, 2, 3]

    def test_leases_that_were_withdrawn_are_forgotten(self):
        at = turn(1, 2)
        at.heard(Reply("void", Version(1, 4), (work(9),), forget=True))
        assert [each.lease.number for each in at.work] == [9]

    def test_the_newest_version_is_the_newest_heard_of_or_read(self):
        at = turn(1)
        assert at.newest == Version(0, 5)
        at.version = Version(0, 7)
        assert at.newest == Version(0, 7)
        at.heard(Reply("void", Version(1, 4)))
        assert at.newest == Version(1, 4)

    @pytest.mark.parametrize(
        ("outcome", "overtaken", "counted"),
        [
            ("counted", False, True),
            ("dropped", True, False),
            ("void", True, False),
            ("refused", False, False),
        ],
    )
    def test_it_knows_what_became_of_the_last_gradient(self, outcome, overtaken, counted):
        at = turn(1)
        at.heard(Reply(outcome, Version(0, 6)))
        assert (at.was_overtaken, at.counted) == (overtaken, counted)
