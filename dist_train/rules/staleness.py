"""How stale gradients were: an exact histogram, small enough to keep for a whole run.

The staleness of a gradient is the version it is applied at minus the version it was computed from, a whole
number of updates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


class Staleness:
    """Counts how often each staleness came up; ``counts`` maps a staleness to its number of gradients."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._counts: Counter[int] = Counter()
        for value, times in (counts or {}).items():
            self.add(value, times)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Staleness) and self._counts == other._counts

    def __repr__(self) -> str:
        return f"Staleness({self.counts})"

    def add(self, value: int, times: int = 1) -> None:
        """Count ``times`` gradients; raises ValueError for a staleness or a number below zero."""
        if value < 0 or times < 0:
            raise ValueError(f"{times} gradients of staleness {value}: neither can be negative")
        if times:
            self._counts[value] += times

    @property
    def counts(self) -> dict[int, int]:
        """Return the histogram, in rising order of staleness."""
        return dict(sorted(self._counts.items()))

    @property
    def gradients(self) -> int:
        return self._counts.total()

    @property
    def mean(self) -> float:
        """Return the mean; 0 where nothing was counted, like the figures below."""
        whole = sum(value * times for value, times in self._counts.items())
        return whole / self.gradients if self.gradients else 0.0

    @property
    def p50(self) -> int:
        return self.percentile(50)

    @property
    def p99(self) -> int:
        return self.percentile(99)

    @property
    def max(self) -> int:
        return max(self._counts, default=0)

    def percentile(self, percent: int) -> int:
        """Return the smallest staleness that at least ``percent`` of 100 gradients do not exceed.

        This is the nearest-rank percentile: always a staleness that occurred, and exact.
        """
        if not 0 < percent <= 100:
            raise ValueError(f"a percentile is above 0 and at most 100, not {percent}")
        rank = -(-percent * self.gradients // 100)
        for value, times in self.counts.items():
            rank -= times
            if rank <= 0:
                return value
        return 0

    def merged(self, other: Staleness) -> Staleness:
        """Return the histogram of both."""
        return Staleness(self._counts + other._counts)

    def since(self, earlier: Staleness) -> Staleness:
        """Return what was counted after ``earlier``, an older copy of this histogram.

        Raises ValueError when ``earlier`` holds what this one does not.
        """
        if not earlier._counts <= self._counts:
            raise ValueError("the earlier histogram holds gradients that the later one does not")
        return Staleness(self._counts - earlier._counts)

    def copy(self) -> Staleness:
        return Staleness(self._counts)

    def summary(self) -> dict[str, float]:
        """Return the figures of summary.json, in updates."""
        return {"mean": round(self.mean, 4), "p50": self.p50, "p99": self.p99, "max": self.max}

    def to_json(self) -> dict[str, int]:
        """Return the histogram with text for keys, as JSON has them."""
        return {str(value): times for value, times in self.counts.items()}

    @classmethod
    def from_json(cls, counts: Mapping[str, int]) -> Staleness:
        """Read what ``to_json`` returned; raises ValueError for anything else."""
        return cls({int(value): int(times) for value, times in counts.items()})


def over_windows(windows: Iterable[tuple[float, float, Staleness]]) -> Staleness:
    """Add up what was counted in windows: after which update each begins, with which it ends, its histogram.

    One that begins earlier than others ended makes them undone: a resumed run counts as it went the last
    time, and a window over all of it holds the rest.
    """
    kept: list[tuple[float, Staleness]] = []
    for since, step, staleness in windows:
        kept = [(end, counted) for end, counted in kept if end <= since]
        kept.append((step, staleness))
    found = Staleness()
    for _, counted in kept:
        found = found.merged(counted)
    return found
