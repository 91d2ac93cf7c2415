"""Uneven workers: computation is slept, by the configuration's ``faults``, so that two cores suffice.

The model is next to nothing. A worker's gradient takes ``STEP_S``, five times that of a slow worker, or a
lognormal multiple of it.
"""

from __future__ import annotations

from typing import Any

from benchmarks.arrivals import expected_wait, lognormal, simulated_wait
from benchmarks.runs import alternating
from benchmarks.workload import BATCH

STEP_S = 0.1
SLOW = 5
EVEN = (f"faults.step_s={STEP_S}", "logging.every_steps=5")
ONE_SLOW = (*EVEN, f"faults.slow={{4: {SLOW}}}")
# Chen et al. 2016 find the lognormal's long tail in the arrivals of real clusters.
QUORUM = 8
SIGMA = 0.5
BACKUPS = range(5)


def one_slow(rounds: int) -> dict[str, Any]:
    """Return samples per second with five workers of which one is slow, beside even ones."""

    def mode(name: str, workers: int, updates: int) -> list[str]:
        return [f"parallel.mode={name}", f"parallel.workers={workers}", f"train.steps={updates}"]

    contestants = {
        "four_even": [*mode("sync", 4, 100), *EVEN],
        "one_even": [*mode("sync", 1, 100), *EVEN],
        "sync": [*mode("sync", 5, 40), *ONE_SLOW],
        "backup": [*mode("backup", 5, 100), "parallel.backups=1", *ONE_SLOW],
        "async": [*mode("async", 5, 400), *ONE_SLOW],
    }
    return {"straggler_samples_per_s": alternating(contestants, rounds)}


def ideals(speeds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return each mode's speed as a share of what it could be at best, round for round.

    Sync and backup: four even workers. Async: four of one worker's speed, and a slow one's.
    """
    four, alone = speeds["four_even"], speeds["one_even"]
    best = {"sync": four, "backup": four, "async": [(4 + 1 / SLOW) * speed for speed in alone]}
    return {name: [own / ideal for own, ideal in zip(speeds[name], best[name], strict=True)] for name in best}


def random_delays(rounds: int) -> dict[str, Any]:
    """Return the seconds of an update with b backups beside a quorum of eight, measured and predicted."""
    delays = (f"faults.scale_s={STEP_S}", f"faults.lognormal_sigma={SIGMA}", "logging.every_steps=5")
    contestants = {
        str(b): [
            "parallel.mode=backup",
            f"parallel.workers={QUORUM + b}",
            f"parallel.backups={b}",
            "train.steps=100",
            *delays,
        ]
        for b in BACKUPS
    }
    measured = alternating(contestants, rounds)
    within = lognormal(STEP_S, SIGMA)
    return {
        "seconds_per_update": {b: [QUORUM * BATCH / s for s in speeds] for b, speeds in measured.items()},
        "order_statistic": {str(b): expected_wait(QUORUM, QUORUM + b, within, 20 * STEP_S) for b in BACKUPS},
        "simulated": {str(b): simulated_wait(QUORUM, QUORUM + b, STEP_S, SIGMA) for b in BACKUPS},
    }
