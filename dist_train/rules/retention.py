"""Which checkpoints to delete."""

from __future__ import annotations

from collections.abc import Sequence


def to_prune(steps: Sequence[int], keep_last: int, keep_every: int | None) -> list[int]:
    """Return, rising, the steps whose checkpoints are no longer wanted.

    Wanted are the ``keep_last`` newest and, for ever, every multiple of ``keep_every`` steps.
    """
    oldest_first = sorted(set(steps))
    older = oldest_first[: max(0, len(oldest_first) - keep_last)]
    return [step for step in older if keep_every is None or step % keep_every]
