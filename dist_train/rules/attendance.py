"""Which teachers a replica does without, so that each change is told of once."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple


class Change(NamedTuple):
    gone: tuple[int, ...]
    back: tuple[int, ...]


class Attendance:
    """At first all are there."""

    def __init__(self) -> None:
        self.absent: frozenset[int] = frozenset()

    def now(self, absent: Collection[int]) -> Change:
        """Take note of who is absent; return who has gone and who is back, in order."""
        before, self.absent = self.absent, frozenset(absent)
        return Change(tuple(sorted(self.absent - before)), tuple(sorted(before - self.absent)))
