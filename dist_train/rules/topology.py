"""Which workers stand together: groups of consecutive ranks that all-reduce among themselves."""

from __future__ import annotations


def groups(workers: int, group_size: int) -> list[list[int]]:
    """Cut ``workers`` ranks into groups of ``group_size``; raises ValueError where that leaves a rest."""
    if workers % group_size:
        raise ValueError(f"{workers} workers cannot be cut into groups of {group_size}")
    return [list(range(first, first + group_size)) for first in range(0, workers, group_size)]
