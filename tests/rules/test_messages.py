"""Tests of the messages between members and coordinator."""

from __future__ import annotations

from dist_train.rules.messages import FIRST, Version


class TestVersion:
    def test_those_of_a_later_era_come_after_all_of_an_earlier_one(self) -> None:
        assert FIRST < Version(0, 9) < Version(1, 3) < Version(1, 4)
