"""Makes a worker as slow and as mortal as the section ``faults`` says, for measurements and tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from dist_train.core.timing import StepClock
from dist_train.rules.injection import Faults, Who, delay, lifetime


def kill_oneself() -> None:
    """End as by the kernel when memory runs out: at once, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


class InjectedFaults:
    """A worker sleeps beside each gradient, and is killed after its last one.

    ``first`` is the number of the next gradient. How long and when is rules/injection.py's matter.
    The sleep counts as time of the backward pass.
    """

    def __init__(
        self,
        faults: Faults,
        who: Who,
        first: int = 0,
        sleep: Callable[[float], None] = time.sleep,
        die: Callable[[], None] = kill_oneself,
    ) -> None:
        self._faults = faults
        self._who = who
        self._gradient = first
        self._sleep = sleep
        self._die = die
        lives = lifetime(faults, who)
        self._last = None if lives is None else first + lives

    def __call__(self, clock: StepClock) -> None:
        """Sleep, or die; called when a gradient is computed and not yet handed in."""
        seconds = delay(self._faults, self._who, self._gradient, clock.computing_s())
        self._gradient += 1
        self._sleep(seconds)
        clock.end("backward")
        if self._gradient == self._last:
            self._die()


def injected_faults(faults: Faults, who: Who, first: int = 0) -> InjectedFaults | None:
    """Return what befalls this worker; None if nothing does."""
    slowed = faults.step_s or faults.lognormal_sigma is not None or faults.slow.get(who.number, 1.0) > 1
    if slowed or faults.mean_lifetime is not None:
        return InjectedFaults(faults, who, first)
    return None
