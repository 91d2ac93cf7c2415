"""What the arrival times of gradients predict for an update that waits for the first of them.

The oracle of the measurements with random delays.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from statistics import NormalDist

from dist_train.rules.backups import completions

Distribution = Callable[[float], float]


def lognormal(median: float, sigma: float) -> Distribution:
    """Return the cumulative distribution of ``median * exp(sigma * z)``, z standard normal."""
    return lambda t: NormalDist().cdf(math.log(t / median) / sigma) if t > 0 else 0.0


def expected_wait(quorum: int, workers: int, within: Distribution, longest: float) -> float:
    """Return the mean time until ``quorum`` of ``workers`` independent gradients are in.

    The mean of an order statistic is the integral of its survival function, up to ``longest``: Chen et al.
    2016, section 3.2, model a step of N + b workers by the N-th of N + b.
    """
    intervals = 20_000
    width = longest / intervals
    middle = (width * (number + 0.5) for number in range(intervals))
    return width * sum(1.0 - at_least(quorum, workers, within(t)) for t in middle)


def at_least(quorum: int, workers: int, chance: float) -> float:
    """Return the chance that at least ``quorum`` of ``workers`` are in when each is with ``chance``."""
    ways = (
        math.comb(workers, k) * chance**k * (1 - chance) ** (workers - k) for k in range(quorum, workers + 1)
    )
    return sum(ways)


def simulated_wait(quorum: int, workers: int, median: float, sigma: float, updates: int = 20_000) -> float:
    """Return the mean time of an update when a late worker first finishes what it has begun.

    ``expected_wait`` lets every worker begin each update afresh. Here one that comes late is late for the
    next update as well, and so backups help less than the order statistics say. It is what ``backups: auto``
    chooses by.
    """
    chance = random.Random(0)
    rounds = ([median * math.exp(sigma * chance.gauss(0, 1)) for _ in range(workers)] for _ in range(updates))
    (end,) = deque(completions(rounds, quorum), maxlen=1)
    return end / updates
