"""Injected delays: how long a worker sleeps beside each gradient, for tests and measurements of slow workers.

A delay is a function of the seed, the worker and the step alone, whichever process asks, and however often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    def seed(self) -> int: ...


def delay(faults: Faults, worker: int, step: int, own_s: float) -> float:
    """Return the seconds that ``worker`` sleeps at its ``step``-th gradient, which took it ``own_s`` seconds.

    The gradient then takes, all in all, its own seconds plus ``step_s`` plus a lognormal draw (of median
    ``scale_s``), times the worker's factor.
    """
    added = faults.step_s
    if faults.lognormal_sigma is not None:
        added += faults.scale_s * math.exp(faults.lognormal_sigma * normal(faults.seed, worker, step))
    return faults.slow.get(worker, 1.0) * (own_s + added) - own_s


def normal(seed: int, worker: int, step: int) -> float:
    """Draw from the standard normal distribution: Box and Muller 1958, from two words of Philox 4x64.

    The seed is Philox's key and (worker, step) its counter, so that draws are independent of each other.
    """
    generator = np.random.Philox(key=seed % _WORD, counter=step % _WORD + worker % _WORD * _WORD)
    radius, angle = (int(word) >> _FURTHER_BITS for word in generator.random_raw(2))
    whole = 2.0**_FRACTION_BITS
    # One more than the first word: its logarithm must exist.
    return math.sqrt(-2 * math.log((radius + 1) / whole)) * math.cos(2 * math.pi * angle / whole)
