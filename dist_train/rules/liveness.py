"""Is a worker hung, and which one? Judged from each worker's beat: its place in the step and its pulse.

All times are seconds of one machine's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

# In the order in which a step passes through them; waiting for the group's gradients is part of backward.
PHASES = ("starting", "data", "forward", "backward", "update", "validating", "saving", "finishing", "waiting")
# For a parameter server to answer, or for something to do: as long as it takes.
PATIENT = "waiting"

# A phase may take this many times the longest it ever took.
TIMES_LONGEST = 20.0


@dataclass(frozen=True)
class Beat:
    """Where a worker is. ``pulse_at``: the last tick of its pulse, None before the first, infinite when it
    was closed in good order. ``longest``: the longest time that this phase took before, 0 the first time.
    """

    rank: int
    step: int
    phase: str
    phase_since: float
    pulse_at: float | None
    longest: float = 0.0


@dataclass(frozen=True)
class Limits:
    frozen_after_s: float
    hung_after_s: float
    start_timeout_s: float


@dataclass(frozen=True)
class Pause:
    """A time in which the observer itself stood still, as when the machine was suspended."""

    ended_at: float
    seconds: float


@dataclass(frozen=True)
class Healthy:
    pass


@dataclass(frozen=True)
class Hung:
    """``ranks`` are the culprits, not those who wait for them; ``kind`` is ``frozen`` or ``hung``."""

    ranks: tuple[int, ...]
    kind: str
    why: str


def judge(beats: Sequence[Beat], now: float, limits: Limits, pauses: Sequence[Pause] = ()) -> Healthy | Hung:
    """Find workers whose process is frozen; failing that, workers whose loop does not move.

    In a group, everybody waits for whoever is furthest behind, so only the rear is judged by the time it
    takes: those at the lowest step and, among them, in the earliest phase. A phase that was never finished
    before may take as long as the start (its first time may compile, or validate a large set).
    """

    def age(since: float) -> float:
        return now - since - sum(pause.seconds for pause in pauses if pause.ended_at > since)

    frozen = [
        beat
        for beat in beats
        if beat.pulse_at is not None and age(beat.pulse_at) > _longest_silence(beat, limits)
    ]
    if frozen:
        silence = max(age(beat.pulse_at) for beat in frozen if beat.pulse_at is not None)
        return _hung(frozen, "frozen", f"no sign of life for {silence:.1f} s")
    rear = _rear(beats)
    if rear and all(age(beat.phase_since) > _longest_phase(beat, limits) for beat in rear):
        return _hung(rear, "hung", f"no progress for {min(age(beat.phase_since) for beat in rear):.1f} s")
    return Healthy()


class Watch:
    """``judge`` over time: a look that comes late is a pause, which is not held against the workers."""

    def __init__(self, limits: Limits, every_s: float) -> None:
        self._limits = limits
        self._every_s = every_s
        self._last: float | None = None
        self._pauses: list[Pause] = []

    def look(self, beats: Sequence[Beat], now: float) -> Healthy | Hung:
        late = 0.0 if self._last is None else now - self._last - self._every_s
        self._last = now
        if late > self._every_s:
            self._pauses.append(Pause(now, late))
        oldest = min((_oldest(beat) for beat in beats), default=now)
        self._pauses = [pause for pause in self._pauses if pause.ended_at > oldest]
        return judge(beats, now, self._limits, self._pauses)


def _longest_silence(beat: Beat, limits: Limits) -> float:
    # Loading libraries and devices may hold the interpreter lock for long without being a fault.
    return limits.start_timeout_s if beat.phase == "starting" else limits.frozen_after_s


def _longest_phase(beat: Beat, limits: Limits) -> float:
    if beat.phase == PATIENT:
        return inf
    if beat.phase == "starting":
        return limits.start_timeout_s
    if beat.longest == 0.0:
        return max(limits.start_timeout_s, limits.hung_after_s)
    return max(limits.hung_after_s, TIMES_LONGEST * beat.longest)


def _place(beat: Beat) -> tuple[bool, int, int]:
    # Whoever is still starting does not know its step yet and is behind everyone.
    return (beat.phase != "starting", beat.step, PHASES.index(beat.phase))


def _rear(beats: Sequence[Beat]) -> list[Beat]:
    last = min(map(_place, beats), default=None)
    return [beat for beat in beats if _place(beat) == last]


def _oldest(beat: Beat) -> float:
    return beat.phase_since if beat.pulse_at is None else min(beat.phase_since, beat.pulse_at)


def _hung(beats: Sequence[Beat], kind: str, why: str) -> Hung:
    ranks = tuple(sorted(beat.rank for beat in beats))
    names = ", ".join(map(str, ranks))
    first = min(beats, key=_place)
    who = f"worker {names} is" if len(ranks) == 1 else f"workers {names} are"
    return Hung(ranks, kind, f"{who} {kind} in step {first.step}, phase {first.phase}: {why}")
