"""Makes a worker as slow as the section ``faults`` says, for measurements and tests of slow workers."""

from __future__ import annotations

import time
from collections.abc import Callable

from dist_train.core.timing import StepClock
from dist_train.rules.delays import Faults, delay


class InjectedDelays:
    """Worker number ``worker`` of the run sleeps beside each gradient; ``first`` is the number of the next.

    How long is rules/delays.py's matter. The sleep counts as time of the backward pass.
    """

    def __init__(
        self, faults: Faults, worker: int, first: int = 0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._faults = faults
        self._worker = worker
        self._gradient = first
        self._sleep = sleep

    def __call__(self, clock: StepClock) -> None:
        """Sleep; called when a gradient is computed and not yet handed in."""
        seconds = delay(self._faults, self._worker, self._gradient, clock.computing_s())
        self._gradient += 1
        self._sleep(seconds)
        clock.end("backward")


def injected_delays(faults: Faults, worker: int, first: int = 0) -> InjectedDelays | None:
    """Return what slows this worker; None if nothing does."""
    if faults.step_s or faults.lognormal_sigma is not None or faults.slow.get(worker, 1.0) > 1:
        return InjectedDelays(faults, worker, first)
    return None
