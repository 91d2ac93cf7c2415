"""Lines of metrics.jsonl as columns of numbers: each is taken apart at once, for there may be millions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from dist_train.report.reading import Record
from dist_train.report.thinning import Numbers

# What nothing in a report is made from, or what is no number.
LEFT_OUT = {
    "kind", "epoch", "replica", "slowest_rank", "times", "worker_times", "workers", "memory_mb", "data_wait",
    "samples_per_s_per_worker", "computed", "applied", "requeued", "staleness_p99",
}  # fmt: skip
# As records write what JSON has no number for.
NOT_FINITE = {"NaN", "Infinity", "-Infinity"}
_PHASES = itemgetter("data", "forward", "backward", "communication", "update")
OF_MEMBER = itemgetter("waiting", "dropped")


@dataclass(frozen=True)
class Workers:
    """What some lines say of each worker; ``places`` are these lines' among those of their kind.

    ``figures`` has shape (lines, workers, 6), seconds per step in each phase; through a server it is (lines,
    workers, 2), the share of waiting and the drops so far, and ``times`` (lines, 6) are the mean seconds of a
    gradient in each phase.
    """

    names: tuple[str, ...]
    places: Sequence[int]
    figures: Numbers
    times: Numbers | None = None


@dataclass(frozen=True)
class Columns:
    """Lines of one kind: ``at`` are their places among all lines; NaN is what a line does not have.

    ``not_finite`` counts, by name, the values that are there and are no finite number.
    """

    at: Numbers
    values: Mapping[str, Numbers]
    not_finite: Mapping[str, int]
    workers: Sequence[Workers] = ()

    def column(self, name: str) -> Numbers:
        return self.values[name] if name in self.values else np.full(len(self.at), np.nan)


@dataclass
class Alike:
    """Lines that have the same keys and are about the same workers, in the order in which they came."""

    first: Record
    names: tuple[str, ...]
    workers: tuple[str, ...]
    places: list[int] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    figures: list[Any] = field(default_factory=list)
    times: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._keys = self.first.keys()
        self._pick: Callable[[Record], Any] = itemgetter(*self.names)
        self._has_members = bool(self.first.get("workers"))
        self._has_ranks = bool(self.first.get("worker_times"))

    def takes(self, line: Record) -> bool:
        """Whether a line is like these; raises KeyError or TypeError where it is like no line of a run."""
        if line.keys() != self._keys:
            return False
        if self._has_members:
            return self.workers == tuple([worker["name"] for worker in line["workers"]])
        return not self._has_ranks or len(line["worker_times"]) == len(self.workers)

    def add(self, place: int, line: Record) -> None:
        """Take a line apart; raises KeyError or TypeError, and takes nothing, where a part is missing."""
        row = self._pick(line)
        if self._has_members:
            times = phases(line["times"])
            self.figures.append([OF_MEMBER(worker) for worker in line["workers"]])
            self.times.append(times)
        elif self._has_ranks:
            self.figures.append([phases(worker) for worker in line["worker_times"]])
        elif self.workers:
            self.figures.append([phases(line["times"])])
        self.rows.append(row)
        self.places.append(place)


def phases(times: Record) -> tuple[Any, ...]:
    """Return the seconds of each phase; not every run has told how long it waited for other replicas."""
    return (*_PHASES(times), times.get("waiting", 0.0))


class Gatherer:
    """Takes lines until they are taken from it, as columns of each kind."""

    def __init__(self) -> None:
        self.size = 0
        self._by_kind: dict[str, list[Alike]] = {}

    def add(self, line: Record) -> bool:
        """Take a line; False for one that is none of training or validation, or is not as a run writes it."""
        kind = line.get("kind")
        if kind not in ("train", "val"):
            return False
        several = self._by_kind.setdefault(kind, [])
        try:
            # Nearly every line is like the one before.
            for alike in reversed(several):
                if alike.takes(line):
                    break
            else:
                alike = _like(line)
                several.append(alike)
            alike.add(self.size, line)
        except (AttributeError, KeyError, TypeError, ValueError):
            return False
        self.size += 1
        return True

    def take(self) -> dict[str, Columns]:
        """Return the columns of each kind, and be empty again."""
        found = {
            kind: _columns([alike for alike in several if alike.rows])
            for kind, several in self._by_kind.items()
        }
        self._by_kind, self.size = {}, 0
        return {kind: columns for kind, columns in found.items() if len(columns.at)}


def numbers(given: Sequence[Any]) -> Numbers:
    """Return values as an array; NaN for what is no number."""
    return np.array([float(value) if is_number(value) else np.nan for value in given])


def is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in NOT_FINITE
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1000)


def _like(line: Record) -> Alike:
    names = tuple(name for name, value in line.items() if name not in LEFT_OUT and is_number(value))
    if len(names) < 2:
        raise ValueError("a line without figures")
    if members := line.get("workers"):
        workers = tuple([worker["name"] for worker in members])
    elif ranks := line.get("worker_times"):
        workers = tuple(map(str, range(len(ranks))))
    else:
        workers = ("0",) if "times" in line else ()
    return Alike(line, names, workers)


def _columns(several: Sequence[Alike]) -> Columns:
    """Put lines of different shapes together, in the order in which they came."""
    at = np.array(sorted(place for alike in several for place in alike.places), dtype=float)
    values: dict[str, Numbers] = {}
    not_finite: dict[str, int] = {}
    workers = []
    for alike in several:
        places = np.searchsorted(at, alike.places)
        for name, column in zip(alike.names, _table(alike).T, strict=True):
            values.setdefault(name, np.full(len(at), np.nan))[places] = column
            not_finite[name] = not_finite.get(name, 0) + int((~np.isfinite(column)).sum())
        if alike.workers:
            workers.append(_workers(alike, places))
    return Columns(at, values, not_finite, [each for each in workers if each is not None])


def _table(alike: Alike) -> Numbers:
    try:
        return np.array(alike.rows, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return np.array([numbers(row) for row in alike.rows])


def _workers(alike: Alike, places: Any) -> Workers | None:
    names = tuple(map(str, alike.workers))
    try:
        times = np.array(alike.times, dtype=float) if alike.times else None
        return Workers(names, places, np.array(alike.figures, dtype=float), times)
    except (TypeError, ValueError, OverflowError):
        # Not as a run writes it: where the time went is then not known.
        return None
