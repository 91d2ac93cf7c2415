"""A run's attempts, and where a moment of the clock lies in the steps that were kept.

What a failure threw away is in no record: steps are taken again, and the wall time of metrics.jsonl goes on
from the checkpoint. Only the clock of events.jsonl has gone on all along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dist_train.report.thinning import Numbers

Event = Mapping[str, Any]

# What a launcher writes about its workers, and what the run of several replicas writes about one of them.
FAILURES = ("failure", "replica_failure")
RESTARTS = ("restart", "replica_restart")


@dataclass(frozen=True)
class Attempt:
    """One start of all workers, at ``step`` and at ``clock`` (seconds since the epoch).

    ``failed`` is the clock of the failure that ended it, the first of several; None where it ended otherwise
    or has not ended. ``restarts`` says whether the next attempt was made by the run itself.
    """

    clock: float
    step: float
    failed: float | None = None
    restarts: bool = False


@dataclass(frozen=True)
class Track:
    """Where the run was: steps, samples and wall time (seconds) of its lines, all rising."""

    step: Numbers
    samples: Numbers
    wall_s: Numbers

    def at_step(self, step: float) -> tuple[float, float, float]:
        """Return step, samples and wall time at a step; the nearest known beyond either end."""
        return tuple(
            float(np.interp(step, self.step, column)) if len(self.step) else 0.0
            for column in (self.step, self.samples, self.wall_s)
        )  # type: ignore[return-value]

    def wall_until(self, step: float) -> float:
        """Return the wall time of the last line of a step or one before: where a run that resumes goes on."""
        return float(self.wall_s[max(0, int(np.searchsorted(self.step, step, side="right")) - 1)])

    def at_wall(self, wall_s: float) -> tuple[float, float, float]:
        return tuple(
            float(np.interp(wall_s, self.wall_s, column)) if len(self.step) else 0.0
            for column in (self.step, self.samples, self.wall_s)
        )  # type: ignore[return-value]


def track(step: Numbers, samples: Numbers, wall_s: Numbers) -> Track:
    """Make a track of what is finite and rises, beginning at nothing."""
    rows = np.column_stack([step, samples, wall_s])
    rows = np.vstack([np.zeros(3), rows[np.isfinite(rows).all(axis=1)]])
    return Track(*np.maximum.accumulate(rows, axis=0).T)


def attempts(events: Iterable[Event]) -> list[Attempt]:
    """Find the attempts in a run's events, in order."""
    found: list[Attempt] = []
    for event in events:
        kind, clock = event.get("event"), number(event.get("time"))
        if kind == "start":
            found.append(Attempt(clock, number(event.get("step"))))
        elif found and kind in FAILURES and "member" not in event:
            last = found[-1]
            # One that fails again before it starts is still on its way back from the first.
            found[-1] = Attempt(last.clock, last.step, clock if last.failed is None else last.failed)
        elif found and kind in RESTARTS:
            last = found[-1]
            found[-1] = Attempt(last.clock, last.step, last.failed, restarts=True)
    return found


@dataclass(frozen=True)
class History:
    """The attempts beside the track; ``walls``: the wall time that each attempt began at, and the last."""

    attempts: Sequence[Attempt]
    track: Track

    @cached_property
    def walls(self) -> list[float]:
        ends = float(self.track.wall_s[-1])
        return [*(self.track.wall_until(each.step) for each in self.attempts), ends]

    def wall_of(self, clock: float) -> float:
        """Return the wall time of a moment; of one in steps thrown away, that of the last step kept."""
        walls, wall = self.walls, 0.0
        for number, attempt in enumerate(self.attempts):
            if attempt.clock <= clock:
                wall = min(walls[number] + clock - attempt.clock, max(walls[number], walls[number + 1]))
        return wall

    def clock_of(self, wall_s: float) -> float:
        """Return the seconds from the first start until a wall time was reached for the last time."""
        if not self.attempts:
            return wall_s
        number = max((n for n, wall in enumerate(self.walls[:-1]) if wall < wall_s), default=0)
        attempt = self.attempts[number]
        return attempt.clock - self.attempts[0].clock + wall_s - self.walls[number]

    def elapsed(self, wall_s: Numbers) -> Numbers:
        """Return wall times with what failures had cost by then; pauses until somebody resumed are left out.

        A wall time that was reached several times is that of the last.
        """
        if not self.attempts:
            return wall_s
        number = np.searchsorted(self.walls[:-1], wall_s, side="left") - 1
        return wall_s + self._costs[np.clip(number, 0, None)]

    def elapsed_at(self, clock: float) -> float:
        """Return the same for a moment of the clock."""
        begun = [number for number, each in enumerate(self.attempts) if each.clock <= clock]
        if not begun:
            return 0.0
        attempt, number = self.attempts[begun[-1]], begun[-1]
        return self.walls[number] + float(self._costs[number]) + clock - attempt.clock

    @property
    def cost(self) -> float:
        """The seconds that failures cost in all: work that was lost, and the way back."""
        return float(self._costs[-1])

    @cached_property
    def _costs(self) -> Numbers:
        """What failures had cost by the start of each attempt: work that was lost, and the way back."""
        cost_of = dict.fromkeys((each.failed for each in self.attempts), 0.0)
        for failed, seconds in self.lost():
            cost_of[failed] += seconds
        for failed, then in self.recoveries():
            cost_of[failed] += then - failed
        costs = [0.0 if each.failed is None else cost_of[each.failed] for each in self.attempts[:-1]]
        return np.cumsum([0.0, *costs])

    def lost(self) -> list[tuple[float, float]]:
        """Return what failures threw away: for each, its clock and the seconds before it that were lost."""
        walls = self.walls
        return [
            (each.failed, max(0.0, each.failed - each.clock - max(0.0, walls[number + 1] - walls[number])))
            for number, each in enumerate(self.attempts[:-1])
            if each.failed is not None
        ]

    def recoveries(self) -> list[tuple[float, float]]:
        """Return from when to when, by the clock, the run was on its way back from a failure."""
        pairs = zip(self.attempts, self.attempts[1:], strict=False)
        return [
            (each.failed, then.clock) for each, then in pairs if each.failed is not None and each.restarts
        ]


def number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
