"""Faults to be injected, for tests and measurements: how slow a worker is, and how long it lives.

Each is a function of the seed, the worker and a count alone, whichever process asks, and however often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

_WORD = 2**64
# Bits of a double's fraction, and those of a 64-bit word beyond them.
_FRACTION_BITS, _FURTHER_BITS = 53, 11


class Faults(Protocol):
    """What to inject: the settings of the section ``faults``."""

    @property
    def step_s(self) -> float:
        """Seconds added to every gradient."""

    @property
    def slow(self) -> Mapping[int, float]:
        """By worker: how many times longer everything takes it, at least 1."""

    @property
    def lognormal_sigma(self) -> float | None:
        """Spread of the random delay, as the standard deviation of its logarithm; None: no random delay."""

    @property
    def scale_s(self) -> float:
        """Median of the random delay, in seconds."""

    @property
    def mean_lifetime(self) -> float | None:
        """Gradients that a worker computes on average before it is killed; None: it is not."""

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Who:
    """A worker by its number in the run, in its ``life``-th life: restarts begin another one."""

    number: int
    life: int = 0


def delay(faults: Faults, who: Who, step: int, own_s: float) -> float:
    """Return the seconds that a worker sleeps at its ``step``-th gradient, which took it ``own_s`` seconds.

    The gradient then takes, all in all, its own seconds plus ``step_s`` plus a lognormal draw (of median
    ``scale_s``), times the worker's factor.
    """
    added = faults.step_s
    if faults.lognormal_sigma is not None:
        added += faults.scale_s * math.exp(faults.lognormal_sigma * normal(faults.seed, who, step))
    return faults.slow.get(who.number, 1.0) * (own_s + added) - own_s


def lifetime(faults: Faults, who: Who) -> int | None:
    """Return how many gradients a worker computes in this life before it is killed, at least 1; None: no end.

    Exponentially distributed: nobody is likelier to die for having lived long, so that it does not matter
    when the others are restarted with one that died.
    """
    if faults.mean_lifetime is None:
        return None
    # The last word of the counter tells these draws from the delays'.
    uniform, _ = _uniform(faults.seed, who, who.life, 1)
    return math.ceil(-faults.mean_lifetime * math.log(uniform))


def normal(seed: int, who: Who, step: int) -> float:
    """Draw from the standard normal distribution (Box and Muller 1958)."""
    radius, angle = _uniform(seed, who, step, 0)
    return math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * angle)


def _uniform(seed: int, who: Who, count: int, kind: int) -> tuple[float, float]:
    """Draw two numbers from Philox 4x64, the first above 0 and the second below 1.

    The seed is its key, the rest its counter, so that draws are independent of each other.
    """
    words = (count, who.number, kind)
    counter = sum(word % _WORD * _WORD**place for place, word in enumerate(words))
    drawn = np.random.Philox(key=seed % _WORD, counter=counter).random_raw(2)
    first, second = (int(word) >> _FURTHER_BITS for word in drawn)
    whole = 2.0**_FRACTION_BITS
    # One more than the first word: its logarithm must exist.
    return (first + 1) / whole, second / whole
