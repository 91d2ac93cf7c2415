"""Where a flat vector is cut into the slices of a parameter server's shards."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

# Cuts fall on multiples of so many elements: 64 bytes of float32, a line of the processor's cache.
GRAIN = 16


def slices(size: int, shards: int, cuts: Sequence[int] | None = None) -> list[range]:
    """Cut range(size) into ``shards`` contiguous slices, near-equal and none empty.

    Each cut falls on the allowed place nearest to the even one, the lower of two equally near: on a
    multiple of ``GRAIN`` or, where given, on one of ``cuts``. Raises ValueError if there are not enough
    places.
    """
    places: Sequence[int] = range(GRAIN, size, GRAIN)
    if cuts is not None:
        places = sorted({cut for cut in cuts if 0 < cut < size})
    if not 1 <= shards <= len(places) + 1:
        raise ValueError(
            f"{size} elements cannot be cut into {shards} slices: 1 to {len(places) + 1} are possible"
        )
    bounds = [0]
    first = 0
    for shard in range(1, shards):
        # Every later cut still needs a place of its own.
        last = len(places) - (shards - 1 - shard)
        index = _nearest(places, size * shard, shards, first, last)
        bounds.append(places[index])
        first = index + 1
    return [range(start, stop) for start, stop in zip(bounds, [*bounds[1:], size], strict=True)]


def _nearest(places: Sequence[int], numerator: int, denominator: int, first: int, last: int) -> int:
    """Return which of ``places[first:last]`` is nearest to numerator / denominator, in whole numbers."""
    above = bisect_left(places, -(-numerator // denominator), first, last)
    around = range(max(first, above - 1), min(last, above + 1))
    return min(around, key=lambda index: abs(places[index] * denominator - numerator))
