"""How one member of a parameter server is doing: a worker, or a group of workers that acts as one."""

from __future__ import annotations

from dist_train.rules.staleness import Staleness
from dist_train.rules.straggler import StepTimes
from dist_train.watch.records import WorkerFigures

NOTHING = StepTimes(data=0.0, forward=0.0, backward=0.0, communication=0.0, update=0.0)


class MemberCourse:
    """Counts what a member did; ``figures`` returns it and begins the next window.

    ``times`` are those of its last gradient. Of a window without a gradient the rate is what is still
    possible: it falls the longer the member is silent.
    """

    def __init__(self, name: str, start: float) -> None:
        self.name = name
        self.times = NOTHING
        self.dropped = 0
        self.waiting_s = 0.0
        self.staleness = Staleness()
        self._mean_staleness = 0.0
        self._rate = 0.0
        # The push that the next rate is measured from, the newest one, and the samples of those between.
        self._from = self._newest = start
        self._samples = 0
        self._last_samples = 0

    def pushed(self, samples: int, times: StepTimes, now: float) -> None:
        """Count a gradient of ``samples`` samples."""
        self.times = times
        self._newest = now
        self._samples += samples
        self._last_samples = samples

    def forget_times(self) -> None:
        """Take note that its process is gone: nobody waits for what it does in a step."""
        self.times = NOTHING

    def figures(self, now: float, window_s: float) -> WorkerFigures:
        """Return the figures of a window of ``window_s`` seconds that ends ``now``."""
        if self._samples:
            self._rate = self._samples / max(self._newest - self._from, 1e-9)
        elif now > self._newest:
            self._rate = min(self._rate, self._last_samples / (now - self._newest))
        self._from, self._samples = self._newest, 0
        if self.staleness.gradients:
            self._mean_staleness = self.staleness.mean
        waiting = min(1.0, self.waiting_s / window_s)
        self.staleness, self.waiting_s = Staleness(), 0.0
        return WorkerFigures(
            name=self.name,
            samples_per_s=self._rate,
            staleness=self._mean_staleness,
            dropped=self.dropped,
            waiting=waiting,
        )
