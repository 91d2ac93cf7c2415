"""Tests of what the records of a parameter server say of teachers, and of gradients that were lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import Mock

from dist_train.rules.decisions import Answer
from dist_train.rules.ledger import Ledger
from dist_train.rules.messages import Lease, Push, Reply, Version, Work
from dist_train.watch.server_records import ServerRecords


def test_whom_a_member_goes_on_without_is_written_down_once() -> None:
    events: list[Mapping[str, Any]] = []
    records = ServerRecords(Mock(), events.append, Ledger(8))

    def push(
        step: int, teachers: tuple[tuple[int, int], ...], without: tuple[int, ...], member: int = 0
    ) -> None:
        version = Version(0, step)
        records.pushed(Push(member, 0, 1, 1, version, 8, 1.0, teachers=teachers, without=without))

    push(5, ((1, 4),), ())
    push(30, (), (1,))
    push(31, (), (1,))
    push(31, (), (1,), member=1)
    push(40, ((1, 38),), ())
    assert [(event["event"], event["step"], event["member"], event["replica"]) for event in events] == [
        ("teacher", 5, 0, 1),
        ("teacher_gone", 30, 0, 1),
        ("teacher_gone", 31, 1, 1),
        ("teacher", 40, 0, 1),
        ("teacher_back", 40, 0, 1),
    ]
    assert "member 0 goes on without it" in events[1]["warning"]


def test_a_gradient_that_was_to_count_and_is_lost_with_a_shard_is_written_down() -> None:
    """In softsync a member goes on before the update that its gradient is for."""
    events: list[Mapping[str, Any]] = []
    records = ServerRecords(Mock(), events.append, Ledger(8))
    work = Work(Lease(1, 0, 0, 8))
    records.answered(Answer(0, 0, 0, Reply("welcome", Version(0, 0), (work,)), "work"))
    records.pushed(Push(0, 0, 1, 1, Version(0, 0), 8, 1.0))
    records.answered(Answer(0, 0, 1, Reply("counted", Version(0, 0)), "work"))
    assert events == []
    back = {"event": "rolled_back", "step": 5, "era": 1}
    for _ in range(2):
        records.rolled_back(0, Ledger(8), back)
    assert [event["event"] for event in events] == ["rolled_back", "void", "rolled_back"]
    void = events[1]
    assert (void["step"], void["era"], void["member"], void["sequence"]) == (5, 1, 0, 1)
    assert void["told"] == "counted"
