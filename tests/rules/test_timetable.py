"""Tests of what is due after an update."""

from __future__ import annotations

import pytest

from dist_train.rules.sampling import Cursor, Position, Run, advance
from dist_train.rules.timetable import Due, Timetable


def due_updates(timetable: Timetable, what: str, updates: int, size: int = 10, batch: int = 4) -> list[int]:
    cursor, found = Cursor(Position(0, 0)), []
    for update in range(1, updates + 1):
        cursor = advance(cursor, size, batch, "keep")
        if getattr(timetable.after(update, cursor, finished=False), what):
            found.append(update)
    return found


def test_lines_and_checkpoints_are_due_at_multiples_of_their_interval() -> None:
    timetable = Timetable(log_steps=3, validate_epochs=1, validate_steps=None, checkpoint_steps=4)
    assert due_updates(timetable, "log", 9) == [3, 6, 9]
    assert due_updates(timetable, "checkpoint", 9) == [4, 8]


@pytest.mark.parametrize(("epochs", "expected"), [(1, [3, 6, 9, 12]), (2, [6, 12]), (3, [9])])
def test_validation_is_due_at_the_end_of_epochs(epochs: int, expected: list[int]) -> None:
    # 10 samples in updates of 4 are three updates an epoch.
    timetable = Timetable(log_steps=1, validate_epochs=epochs, validate_steps=None, checkpoint_steps=1)
    assert due_updates(timetable, "validation", 12) == expected


def test_no_epoch_ends_while_samples_before_it_are_not_trained() -> None:
    timetable = Timetable(log_steps=1, validate_epochs=1, validate_steps=None, checkpoint_steps=1)
    border = Position(1, 0)
    assert not timetable.after(3, Cursor(border, (Run(0, 6, 4),)), finished=False).validation
    assert timetable.after(4, Cursor(border), finished=False).validation


def test_validation_in_steps_takes_no_notice_of_epochs() -> None:
    timetable = Timetable(log_steps=1, validate_epochs=1, validate_steps=5, checkpoint_steps=1)
    assert due_updates(timetable, "validation", 12) == [5, 10]


def test_at_the_end_of_training_everything_is_due() -> None:
    timetable = Timetable(log_steps=10, validate_epochs=9, validate_steps=10, checkpoint_steps=10)
    assert timetable.after(7, Cursor(Position(0, 4)), finished=True) == Due(True, True, True)
    assert timetable.after(7, Cursor(Position(0, 4)), finished=False) == Due(False, False, False)
