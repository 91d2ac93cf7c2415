"""What training lines say about each worker's time, as seconds by use.

A line of mode sync has every worker's seconds per step and phase. A line of a parameter server has each
worker's share of waiting, and the causes of all workers' waiting together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from dist_train.report.columns import Columns, Workers
from dist_train.report.goodput import BY_LINE
from dist_train.report.thinning import Joining, Numbers, Thinned

CAUSES = ("waiting_quorum", "waiting_server", "waiting_bound", "waiting_work", "waiting_data")
# A window of a worker's time, in seconds of the run's wall time.
_WINDOW: Mapping[str, Joining] = {"start": "first", "end": "last", "seconds": "sum"}


@dataclass
class Working:
    """Each worker's seconds, in all and by window; ``step`` and ``wall_s`` are those of the line before.

    At most ``2 * limit`` windows are kept for each worker.
    """

    limit: int
    step: float = 0.0
    wall_s: float = 0.0
    totals: dict[str, Numbers] = field(default_factory=dict)
    windows: dict[str, Thinned] = field(default_factory=dict)
    _dropped: dict[str, float] = field(default_factory=dict)

    def add(self, lines: Columns, validation_s: Numbers) -> None:
        """Take training lines; ``validation_s`` is what validations took between each and the line before."""
        walls, steps = _rising(lines.column("wall_s"), self.wall_s), _known(lines.column("step"), self.step)
        starts = np.r_[self.wall_s, walls[:-1]]
        # A step that is taken again after a failure is not taken a negative number of times.
        taken = np.maximum(np.diff(steps, prepend=self.step), 0.0)
        length = np.maximum(walls - starts - validation_s, 0.0)
        causes = np.column_stack([lines.column(cause) for cause in CAUSES])
        for workers in lines.workers:
            at = workers.places
            if workers.times is None:
                seconds = synchronous(workers.figures, taken[at])
            else:
                before = np.array([self._dropped.get(name, 0.0) for name in workers.names])
                seconds = through_server(workers, length[at], np.nan_to_num(causes[at]), before)
                self._dropped |= dict(zip(workers.names, workers.figures[-1, :, 1], strict=True))
            self._keep(workers, starts[at], walls[at], np.nan_to_num(seconds))
        self.wall_s, self.step = float(walls[-1]), float(steps[-1])

    def _keep(self, workers: Workers, starts: Numbers, ends: Numbers, seconds: Numbers) -> None:
        for place, name in enumerate(workers.names):
            own = seconds[:, place]
            self.totals[name] = self.totals.get(name, 0.0) + own.sum(axis=0)
            windows = self.windows.setdefault(name, Thinned(_WINDOW, self.limit))
            windows.add(start=starts, end=ends, seconds=own)

    def shown(self) -> Iterator[tuple[str, float, float, Numbers]]:
        """Yield each window of each worker: its name, start, end, and seconds by use."""
        for name, windows in self.windows.items():
            columns = (windows.column(column) for column in _WINDOW)
            for start, end, seconds in zip(*columns, strict=True):
                yield name, float(start), float(end), seconds


def _known(column: Numbers, before: float) -> Numbers:
    """Return a column with what is missing as it was before."""
    return np.where(np.isfinite(column), column, before)


def _rising(column: Numbers, before: float) -> Numbers:
    return np.maximum.accumulate(np.maximum(_known(column, before), before))


def synchronous(per_step: Numbers, steps: Numbers) -> Numbers:
    """Return seconds of shape (lines, workers, uses) where all workers meet in every step.

    ``per_step`` has shape (lines, workers, phases); ``steps`` are those since the line before. The exchange
    takes as long as it took the worker that came last; what the others needed beyond that was waiting, and so
    was what went by until other replicas were there.
    """
    data, forward, backward, communication, update, waiting = np.moveaxis(per_step, 2, 0)
    exchange = np.broadcast_to(communication.min(axis=1, keepdims=True), communication.shape)
    uses = {
        "computation": forward + backward + update,
        "data": data,
        "communication": exchange,
        "stragglers": communication - exchange + waiting,
        "dropped": np.zeros_like(data),
    }
    return np.stack([uses[use] for use in BY_LINE], axis=2) * steps[:, None, None]


def through_server(workers: Workers, length: Numbers, causes: Numbers, dropped: Numbers) -> Numbers:
    """Return seconds of shape (lines, workers, uses) through a parameter server.

    ``length`` is each line's time without validations, ``causes`` (lines, causes) the seconds that all
    workers waited, ``dropped`` each worker's drops until the first line. Of the time that a worker
    did not wait, each gradient that was dropped takes what a gradient takes.
    """
    assert workers.times is not None  # lines of a server have them
    waiting = np.clip(workers.figures[:, :, 0], 0.0, 1.0) * length[:, None]
    whole = causes.sum(axis=1, keepdims=True)
    shares = np.divide(causes, whole, out=np.zeros_like(causes), where=whole > 0)
    quorum, server, bound, _, data = shares.T[:, :, None]
    gradient = workers.times[:, [1, 2, 4]].sum(axis=1)
    drops = np.maximum(np.diff(workers.figures[:, :, 1], axis=0, prepend=dropped[None]), 0.0)
    working = length[:, None] - waiting
    thrown_away = np.minimum(drops * gradient[:, None], working)
    uses = {
        "computation": working - thrown_away,
        "data": waiting * data,
        "communication": waiting * server,
        "stragglers": waiting * (quorum + bound),
        "dropped": thrown_away,
    }
    return np.stack([uses[use] for use in BY_LINE], axis=2)
