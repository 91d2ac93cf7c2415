"""The learning rate, the momentum and the weight decay as functions of progress.

Every length is in samples, and progress is the number of samples consumed before the update, so that
a schedule means the same with any number of workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Cycle lengths need not be whole; summing them rounds by far less than this part of a sample.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Warmup:
    """The first ``samples`` of training: from ``start_lr`` in equal increments per sample, or held there."""

    samples: int
    start_lr: float
    gradual: bool


@dataclass(frozen=True)
class Constant:
    """The peak rate throughout."""


@dataclass(frozen=True)
class Step:
    """The rate times ``gamma`` at each milestone, in samples from the start of training, warmup included."""

    milestones: tuple[float, ...]
    gamma: float


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the peak, at the end of the warmup, to ``min_lr`` at the end of training."""

    min_lr: float


@dataclass(frozen=True)
class Restarts:
    """A cosine that starts again from the peak at the end of each cycle.

    The first cycle takes ``first`` samples, each further one ``factor`` times the one before
    (Loshchilov and Hutter 2016, section 3). Equal cycles, ``factor`` 1, are Huang et al. 2017,
    equation 2, where ``first`` is a whole number of updates.
    """

    first: float
    factor: float
    min_lr: float

    def __post_init__(self) -> None:
        if self.first <= 0 or self.factor < 1:
            raise ValueError(f"cycles must have a length and not shrink, found {self}")


@dataclass(frozen=True)
class OneCycle:
    """A triangle, then a tail (Smith 2018, section 4).

    Over the share ``triangle`` of training the rate rises from peak/start_factor to the peak and falls
    back; over the rest it falls on to peak/final_factor. ``momentum`` is its lowest and highest value:
    lowest at the peak, highest at the triangle's ends and in the tail; None leaves it alone.
    """

    triangle: float
    start_factor: float
    final_factor: float
    momentum: tuple[float, float] | None


Decay = Constant | Step | Cosine | Restarts | OneCycle


@dataclass(frozen=True)
class Rewarm:
    """From ``start`` on, the rate's factor climbs linearly from ``ratio`` to 1 over ``samples``."""

    start: int
    samples: int
    ratio: float


@dataclass(frozen=True)
class Schedule:
    """The whole course of training: ``total`` samples at rates up to ``peak``."""

    peak: float
    total: int
    warmup: Warmup | None
    decay: Decay
    rewarms: tuple[Rewarm, ...] = ()
    # Of the weight decay: from so many samples on, the factor.
    decay_factors: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Scheduled:
    """What an update is made with: the learning rate, and whatever else moves, None what does not.

    ``weight_decay`` is what the optimizer's own is multiplied by.
    """

    rate: float
    momentum: float | None = None
    weight_decay: float | None = None


# For whoever computes a gradient and makes no step with it.
NO_STEP = Scheduled(0.0)


def scheduled(schedule: Schedule, samples: int) -> Scheduled:
    """Return what the update that starts after ``samples`` is made with."""
    return Scheduled(
        learning_rate(schedule, samples), momentum(schedule, samples), weight_decay_factor(schedule, samples)
    )


def learning_rate(schedule: Schedule, samples: int) -> float:
    """Return the rate of the update that starts after ``samples``; past the end, the rate at the end."""
    samples = min(samples, schedule.total)
    rate = _planned(schedule, samples)
    for rewarm in schedule.rewarms:
        rate *= _rewarming(rewarm, samples)
    return rate


def momentum(schedule: Schedule, samples: int) -> float | None:
    """Return the momentum of the update that starts after ``samples``, or None where it never changes."""
    decay = schedule.decay
    if not isinstance(decay, OneCycle) or decay.momentum is None:
        return None
    low, high = decay.momentum
    return high - (high - low) * _triangle(_share(schedule, samples) / decay.triangle)


def weight_decay_factor(schedule: Schedule, samples: int) -> float | None:
    """Return what the weight decay of the update that starts after ``samples`` is multiplied by.

    None where it never changes.
    """
    if not schedule.decay_factors:
        return None
    passed = [factor for milestone, factor in schedule.decay_factors if samples >= milestone]
    return passed[-1] if passed else 1.0


def _planned(schedule: Schedule, samples: int) -> float:
    warmup, peak = _warmup(schedule), schedule.peak
    if warmup is None or samples >= warmup.samples:
        return _decayed(schedule, samples)
    if not warmup.gradual:
        return warmup.start_lr
    return warmup.start_lr + (peak - warmup.start_lr) * samples / warmup.samples


def _decayed(schedule: Schedule, samples: int) -> float:
    peak, decay = schedule.peak, schedule.decay
    match decay:
        case Constant():
            return peak
        case Step():
            passed = sum(samples >= milestone for milestone in decay.milestones)
            return float(peak * decay.gamma**passed)
        case Cosine():
            return _half_cosine(peak, decay.min_lr, _share(schedule, samples))
        case Restarts():
            return _half_cosine(peak, decay.min_lr, _share_of_cycle(schedule, decay, samples))
        case OneCycle():
            return _one_cycle(peak, decay, _share(schedule, samples))


def _warmup(schedule: Schedule) -> Warmup | None:
    """The warmup, if there is anything to climb (Goyal et al. 2017: none at the base batch or below)."""
    warmup = schedule.warmup
    return warmup if warmup is not None and warmup.start_lr < schedule.peak else None


def _begin(schedule: Schedule) -> int:
    warmup = _warmup(schedule)
    return warmup.samples if warmup is not None else 0


def _share(schedule: Schedule, samples: int) -> float:
    """How much of the course after the warmup lies behind, from 0 to 1."""
    begin = _begin(schedule)
    return (samples - begin) / max(1, schedule.total - begin)


def _share_of_cycle(schedule: Schedule, decay: Restarts, samples: int) -> float:
    begin = _begin(schedule)
    done, length = samples - begin, decay.first
    start = 0.0
    # A cycle that ends with training is not followed by another.
    last = min(done, schedule.total - begin - 1)
    while last >= start + length - _ROUNDING:
        start += length
        length *= decay.factor
    return (done - start) / length


def _half_cosine(high: float, low: float, share: float) -> float:
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * share))


def _one_cycle(peak: float, decay: OneCycle, share: float) -> float:
    low, final = peak / decay.start_factor, peak / decay.final_factor
    if share <= decay.triangle:
        return low + (peak - low) * _triangle(share / decay.triangle)
    return low + (final - low) * (share - decay.triangle) / (1 - decay.triangle)


def _triangle(share: float) -> float:
    """The height of a triangle over [0, 1], whose peak 1 is in the middle; 0 beyond it."""
    return max(0.0, 1 - abs(2 * share - 1))


def _rewarming(rewarm: Rewarm, samples: int) -> float:
    done = samples - rewarm.start
    if done < 0 or done >= rewarm.samples:
        return 1.0
    return rewarm.ratio + (1 - rewarm.ratio) * done / rewarm.samples
