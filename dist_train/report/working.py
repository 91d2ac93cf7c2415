"""What training lines say about each worker's time, as seconds by use.

A line of mode sync has every worker's seconds per step and phase. A line of a parameter server has each
worker's share of waiting, and the causes of all workers' waiting together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from dist_train.report.goodput import BY_LINE
from dist_train.report.thinning import Joining, Numbers, Thinned

Lines = Sequence[Mapping[str, Any]]

_PHASES = itemgetter("data", "forward", "backward", "communication", "update")
_CAUSES = ("waiting_quorum", "waiting_server", "waiting_bound", "waiting_work", "waiting_data")
_OF_WORKER = itemgetter("waiting", "dropped")
# A window of a worker's time, in seconds of the run's wall time.
_WINDOW: Mapping[str, Joining] = {"start": "first", "end": "last", "seconds": "sum"}


@dataclass
class Working:
    """Each worker's seconds, in all and window by window; ``step`` and ``wall_s`` are those of the line before.

    At most ``2 * limit`` windows are kept for each worker.
    """

    limit: int
    step: float = 0.0
    wall_s: float = 0.0
    totals: dict[str, Numbers] = field(default_factory=dict)
    windows: dict[str, Thinned] = field(default_factory=dict)
    _dropped: dict[str, float] = field(default_factory=dict)

    def add(self, lines: Lines, validation_s: Numbers) -> int:
        """Take training lines, in order; ``validation_s`` is what validations took since the line before.

        Returns how many lines did not say what they should.
        """
        unclear = 0
        start = 0
        for names, group in groupby(lines, key=_names):
            several = list(group)
            validations = validation_s[start : start + len(several)]
            start += len(several)
            try:
                self._add(names, several, validations)
            except (KeyError, TypeError, ValueError, OverflowError):
                unclear += len(several)
        return unclear

    def _add(self, names: tuple[str, ...], lines: Lines, validation_s: Numbers) -> None:
        walls = np.array([line["wall_s"] for line in lines], dtype=float)
        steps = np.array([line["step"] for line in lines], dtype=float)
        starts = np.r_[self.wall_s, walls[:-1]]
        if lines[0].get("workers"):
            length = np.maximum(walls - starts - validation_s, 0.0)
            before = np.array([self._dropped.get(name, 0.0) for name in names])
            seconds, dropped = through_server(lines, length, before)
            self._dropped |= dict(zip(names, dropped, strict=True))
        else:
            # A step that is taken again after a failure is not taken a negative number of times.
            seconds = synchronous(lines, np.maximum(np.diff(steps, prepend=self.step), 0.0))
        self.wall_s, self.step = float(walls[-1]), float(steps[-1])
        for place, name in enumerate(names):
            own = seconds[:, place]
            self.totals[name] = self.totals.get(name, 0.0) + own.sum(axis=0)
            windows = self.windows.setdefault(name, Thinned(_WINDOW, self.limit))
            windows.add(start=starts, end=walls, seconds=own)

    def shown(self) -> Iterator[tuple[str, float, float, Numbers]]:
        """Yield each window of each worker: its name, start, end, and seconds by use."""
        for name, windows in self.windows.items():
            columns = (windows.column(column) for column in _WINDOW)
            for start, end, seconds in zip(*columns, strict=True):
                yield name, float(start), float(end), seconds


def synchronous(lines: Lines, steps: Numbers) -> Numbers:
    """Return seconds of shape (lines, workers, uses) where all workers meet in every step.

    ``steps`` are those since the line before. The exchange takes as long as it took the worker that came last;
    what the others needed beyond that, they waited for it.
    """
    per_step = np.array(
        [[_PHASES(times) for times in line.get("worker_times") or [line["times"]]] for line in lines],
        dtype=float,
    )
    data, forward, backward, communication, update = np.moveaxis(per_step, 2, 0)
    exchange = np.broadcast_to(communication.min(axis=1, keepdims=True), communication.shape)
    uses = {
        "computation": forward + backward + update,
        "data": data,
        "communication": exchange,
        "stragglers": communication - exchange,
        "dropped": np.zeros_like(data),
    }
    return np.stack([uses[use] for use in BY_LINE], axis=2) * steps[:, None, None]


def through_server(lines: Lines, length: Numbers, dropped: Numbers) -> tuple[Numbers, Numbers]:
    """Return seconds of shape (lines, workers, uses) through a parameter server, and the last counts of drops.

    ``length`` is each line's time without validations, ``dropped`` each worker's drops until the first line.
    Of the time that a worker did not wait, each gradient that was dropped takes what a gradient takes.
    """
    figures = np.array([[_OF_WORKER(worker) for worker in line["workers"]] for line in lines], dtype=float)
    waiting = np.clip(figures[:, :, 0], 0.0, 1.0) * length[:, None]
    causes = np.array([[line.get(cause) or 0.0 for cause in _CAUSES] for line in lines], dtype=float)
    whole = causes.sum(axis=1, keepdims=True)
    quorum, server, bound, _, data = np.divide(
        causes, whole, out=np.zeros_like(causes), where=whole > 0
    ).T[:, :, None]
    times = np.array([_PHASES(line["times"]) for line in lines], dtype=float)
    gradient = times[:, [1, 2, 4]].sum(axis=1)
    drops = np.maximum(np.diff(figures[:, :, 1], axis=0, prepend=dropped[None]), 0.0)
    working = length[:, None] - waiting
    thrown_away = np.minimum(drops * gradient[:, None], working)
    uses = {
        "computation": working - thrown_away,
        "data": waiting * data,
        "communication": waiting * server,
        "stragglers": waiting * (quorum + bound),
        "dropped": thrown_away,
    }
    return np.stack([uses[use] for use in BY_LINE], axis=2), figures[-1, :, 1]


def _names(line: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the workers of a line; groups of workers by their first and last."""
    if workers := line.get("workers"):
        return tuple(str(worker.get("name")) for worker in workers)
    return tuple(map(str, range(len(line.get("worker_times") or "0"))))
