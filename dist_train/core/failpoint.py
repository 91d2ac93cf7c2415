"""Named points between two effects, where a test may strike: raise, kill the process, fill the disk."""

from __future__ import annotations

from collections.abc import Callable

# What happens at a failpoint, given its name; None in every real run.
strike: Callable[[str], None] | None = None


def failpoint(name: str) -> None:
    """Mark the point ``name``."""
    if strike is not None:
        strike(name)
