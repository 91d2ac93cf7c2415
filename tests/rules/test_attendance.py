"""Tests of which teachers a replica does without."""

from __future__ import annotations

from dist_train.rules.attendance import Attendance


def test_each_change_is_told_once() -> None:
    found = Attendance()
    assert found.now([]) == ((), ())
    assert found.now({2, 1}) == ((1, 2), ())
    assert found.now({1, 2}) == ((), ())
    assert found.now({2, 3}) == ((3,), (1,))
    assert found.now([]) == ((), (2, 3))


def test_it_is_known_who_is_absent() -> None:
    found = Attendance()
    found.now({2})
    assert found.absent == {2}
