"""Columns of numbers made shorter while they are read: neighbours join, and their extremes are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
# What becomes of a column's entries when neighbouring rows join.
Joining = Literal["first", "last", "sum", "lowest", "highest"]

_JOINED: Mapping[Joining, Any] = {"sum": np.add, "lowest": np.minimum, "highest": np.maximum}


class Thinned:
    """A table of at most ``2 * limit`` rows, however many are added to it.

    Each row stands for as many of the rows added as every other one, but for the last, which may stand for
    fewer: a power of two, doubled whenever the table is full. ``joining`` names the columns and says how
    their entries join.
    """

    def __init__(self, joining: Mapping[str, Joining], limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a table of {limit} rows can hold nothing")
        self._joining = dict(joining)
        self._limit = limit
        self._added = 0
        self._stride = 1
        self._places: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._columns: dict[str, Numbers] | None = None

    def add(self, **columns: Numbers) -> None:
        """Append rows: one entry of each column for every row, along the first dimension."""
        if columns.keys() != self._joining.keys():
            raise ValueError(f"columns {sorted(columns)} in place of {sorted(self._joining)}")
        size = len(next(iter(columns.values())))
        if not size:
            return
        self._places = np.concatenate([self._places, np.arange(self._added, self._added + size)])
        self._added += size
        before = self._columns
        self._columns = {
            name: new if before is None else np.concatenate([before[name], new])
            for name, new in columns.items()
        }
        while self._added > 2 * self._limit * self._stride:
            self._stride *= 2
        self._join()

    def column(self, name: str) -> Numbers:
        """Return one column's entries, in the order in which they were added."""
        return np.empty(0) if self._columns is None else self._columns[name]

    def __len__(self) -> int:
        return len(self._places)

    def _join(self) -> None:
        """Join the rows that belong to the same stretch of ``stride`` rows."""
        stretches = self._places // self._stride
        starts = np.flatnonzero(np.r_[True, stretches[1:] != stretches[:-1]])
        if self._columns is None or len(starts) == len(stretches):
            return
        ends = np.r_[starts[1:], len(stretches)] - 1
        for name, how in self._joining.items():
            entries = self._columns[name]
            if how == "first":
                self._columns[name] = entries[starts]
            elif how == "last":
                self._columns[name] = entries[ends]
            else:
                self._columns[name] = _JOINED[how].reduceat(entries, starts, axis=0)
        self._places = self._places[starts]
