"""Where the workers' time went, and how much of it made progress.

Goodput is the share of the time that went into computing gradients that count. A worker's time is that of the
run: the steps that are kept, those that a failure threw away, and the time until it trained again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dist_train.report.thinning import Numbers

Use = Literal[
    "computation",
    "data",
    "communication",
    "stragglers",
    "dropped",
    "validation",
    "checkpoints",
    "recovery",
    "other",
]
USES: tuple[Use, ...] = get_args(Use)
# What a training line tells, worker by worker; the rest is told by validations and events.
BY_LINE: tuple[Use, ...] = USES[:5]

IN_WORDS: Mapping[Use, str] = {
    "computation": "computation",
    "data": "waiting for data",
    "communication": "communication",
    "stragglers": "waiting for stragglers",
    "dropped": "dropped work",
    "validation": "validation",
    "checkpoints": "checkpoints",
    "recovery": "recovery",
    "other": "other",
}

Spent = Mapping[Use, float]


@dataclass(frozen=True)
class Interruptions:
    """The seconds of a run that are in no training line, alike for every worker, and those of one alone.

    ``validation`` and ``checkpoints`` are inside the run's wall time; ``lost`` (steps thrown away) and
    ``recovery`` (from a failure to the next start) come on top of it. ``replaced`` is, by worker, the time
    from its failure to its successor's first gradient, inside the wall time, and ``rolled_back`` what went
    into updates that were lost with a shard.
    """

    validation: float = 0.0
    checkpoints: float = 0.0
    lost: float = 0.0
    recovery: float = 0.0
    replaced: Mapping[str, float] | None = None
    rolled_back: float = 0.0


def spent(by_line: Mapping[str, Numbers], wall_s: float, around: Interruptions) -> dict[str, Spent]:
    """Return each worker's seconds by use; they add up to the run's wall time, lost work and recovery.

    ``by_line`` has, by worker, the seconds of ``BY_LINE`` over all training lines; ``wall_s`` is the wall
    time of the steps that were kept.
    """
    return {worker: _of_worker(seconds, wall_s, around, worker) for worker, seconds in by_line.items()}


def mean(workers: Mapping[str, Spent]) -> Spent:
    """Return the mean of the workers' seconds by use; zeros where there is no worker."""
    return {use: float(np.mean([each[use] for each in workers.values()])) if workers else 0.0 for use in USES}


def goodput(seconds: Spent) -> float | None:
    """Return the share (0 to 1) of the time that was computation that counts; None without any time."""
    whole = sum(seconds.values())
    return seconds["computation"] / whole if whole > 0 else None


def _of_worker(seconds: Numbers, wall_s: float, around: Interruptions, worker: str) -> Spent:
    found = dict(zip(BY_LINE, (float(each) for each in seconds), strict=True))
    replaced = min((around.replaced or {}).get(worker, 0.0), wall_s)
    # A worker that is not there computes nothing, whatever its last rate promised.
    idle = max(0.0, wall_s - sum(found.values()) - around.validation - around.checkpoints)
    found["computation"] = max(0.0, found["computation"] - max(0.0, replaced - idle))
    rolled_back = min(around.rolled_back, found["computation"])
    found["computation"] -= rolled_back
    found["dropped"] += rolled_back
    known = sum(found.values()) + around.validation + around.checkpoints + replaced
    return {
        **found,
        "dropped": found["dropped"] + around.lost,
        "validation": around.validation,
        "checkpoints": around.checkpoints,
        "recovery": around.recovery + replaced,
        "other": max(0.0, wall_s - known),
    }
