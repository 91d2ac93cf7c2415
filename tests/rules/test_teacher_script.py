"""Tests of what a run's events say about its changes of teachers."""

from __future__ import annotations

from dist_train.rules.teacher_script import Script


def teacher(step: int, replica: int, version: int) -> dict[str, object]:
    return {"event": "teacher", "step": step, "replica": replica, "version": version}


def test_changes_come_after_the_updates_at_which_they_were_made() -> None:
    script = Script.of([teacher(12, 1, 10), {"event": "checkpoint", "step": 20}, teacher(24, 1, 20)])
    assert [script.after(updates) for updates in (11, 12, 24)] == [(), ((1, 10),), ((1, 20),)]


def test_several_teachers_may_change_at_once() -> None:
    assert Script.of([teacher(12, 1, 10), teacher(12, 2, 9)]).after(12) == ((1, 10), (2, 9))


def test_what_was_trained_again_after_an_interruption_counts_as_it_was_the_last_time() -> None:
    events = [
        {"event": "start", "step": 0},
        teacher(12, 1, 10),
        teacher(24, 1, 20),
        {"event": "start", "step": 20},
        teacher(23, 1, 30),
    ]
    assert Script.of(events).changes == {12: ((1, 10),), 23: ((1, 30),)}


def test_in_force_is_what_was_taken_up_last() -> None:
    script = Script({24: ((1, 20),), 12: ((1, 10), (2, 9))})
    assert [script.in_force(updates) for updates in (11, 12, 30)] == [{}, {1: 10, 2: 9}, {1: 20, 2: 9}]
    assert script.teachers == {1, 2}
