"""Which worker, if any, the others wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

Phase = Literal["data", "forward", "backward", "update"]
PHASES: tuple[Phase, ...] = ("data", "forward", "backward", "update")


@dataclass(frozen=True)
class StepTimes:
    """Where a worker's time went, or the mean of several workers': seconds per step in each phase."""

    data: float
    forward: float
    backward: float
    communication: float
    update: float
    # For other replicas.
    waiting: float = 0.0

    @property
    def total(self) -> float:
        return self.own + self.communication + self.waiting

    @property
    def own(self) -> float:
        """The worker's own work: without waiting, and without communication, which is mostly that too."""
        return self.data + self.forward + self.backward + self.update


@dataclass(frozen=True)
class Straggler:
    """The worker that holds the others up, the phase it loses most in, and how many times slower it is."""

    rank: int
    phase: Phase
    ratio: float


def straggler(times: Sequence[StepTimes], ratio: float, least_s: float = 1e-3) -> Straggler | None:
    """Return the slowest worker if its own work exceeds ``ratio`` times the median worker's, else None.

    ``times`` holds one entry per rank. The excess must reach ``least_s`` seconds, so that tiny steps
    raise no alarm. Of an even number of workers the median is the faster of the middle two: of two,
    the other one.
    """
    typical = median_low(worker.own for worker in times) if times else 0.0
    if typical <= 0:
        return None
    rank, slowest = max(enumerate(times), key=lambda entry: entry[1].own)
    if slowest.own <= ratio * typical or slowest.own - typical < least_s:
        return None

    def excess(phase: Phase) -> float:
        return float(getattr(slowest, phase) - median_low(getattr(worker, phase) for worker in times))

    return Straggler(rank, max(PHASES, key=excess), slowest.own / typical)


class Streaks:
    """Tells a worker that is slow for good from one that was slow once: names it when it has been the
    straggler of ``length`` measurements in a row, and not again while that goes on."""

    def __init__(self, length: int = 3) -> None:
        self._length = length
        self._rank: int | None = None
        self._count = 0

    def after(self, found: Straggler | None) -> Straggler | None:
        """Take the outcome of the next measurement; return it when it is to be told."""
        rank = None if found is None else found.rank
        self._count = self._count + 1 if rank == self._rank else 1
        self._rank = rank
        return found if self._count == self._length else None
