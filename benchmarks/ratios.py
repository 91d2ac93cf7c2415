"""What can be said about speed on a noisy machine: ratios between neighbours in time, and their spread.

A machine's speed drifts by more than the differences that matter. Contestants therefore take turns within
seconds; each round gives one ratio to the baseline of the same round, and the median is over the rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, their quartiles, and a 95% confidence interval of the median."""

    median: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]
    count: int


def scaled(of: Spread, factor: float) -> Spread:
    """Return the spread in another unit, ``factor`` (above 0) of which make one."""
    lower, upper, low, high = (number * factor for number in (*of.quartiles, *of.interval))
    return Spread(of.median * factor, (lower, upper), (low, high), of.count)


def spread(numbers: Sequence[float]) -> Spread:
    """Summarise at least one number. The interval is that of the sign test: it assumes no distribution."""
    ordered = sorted(numbers)
    if len(ordered) == 1:
        only = ordered[0]
        return Spread(only, (only, only), (only, only), 1)
    lower, median, upper = statistics.quantiles(ordered, n=4, method="inclusive")
    tail = _tail(len(ordered))
    return Spread(median, (lower, upper), (ordered[tail], ordered[-1 - tail]), len(ordered))


def _tail(count: int, error: float = 0.05) -> int:
    """How many of ``count`` ordered numbers to leave out on each side; 0 when they are too few."""
    outside, chance = 0, 0.5**count
    while 2 * chance <= error:
        outside += 1
        chance += math.comb(count, outside) * 0.5**count
    return max(0, outside - 1)


def ratios(rounds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Spread]:
    """Divide every contestant's time by the baseline's time in the same round.

    Raises ValueError when contestants did not run in the same number of rounds.
    """
    return {
        name: spread([own / reference for own, reference in zip(times, rounds[baseline], strict=True)])
        for name, times in rounds.items()
    }


def speeds(rounds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Spread]:
    """Divide every contestant's speed (steps per second) by the baseline's speed in the same round."""
    return {
        name: spread([reference / own for own, reference in zip(times, rounds[baseline], strict=True)])
        for name, times in rounds.items()
    }


def differences(rounds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Spread]:
    """Subtract the baseline's time in the same round from every contestant's time."""
    return {
        name: spread([own - reference for own, reference in zip(times, rounds[baseline], strict=True)])
        for name, times in rounds.items()
    }
