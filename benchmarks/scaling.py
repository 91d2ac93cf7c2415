"""How the speed grows with workers whose computation is slept, so that two cores carry eight of them."""

from __future__ import annotations

from typing import Any

from benchmarks.runs import alternating

STEP_S = 0.2
WORKERS = (1, 2, 4, 8)
UPDATES = 60


def measure(rounds: int) -> dict[str, Any]:
    """Return samples per second by mode and number of workers."""
    simulated = (f"faults.step_s={STEP_S}", "logging.every_steps=5")
    updates = {"sync": dict.fromkeys(WORKERS, UPDATES), "async": {n: UPDATES * n for n in WORKERS}}
    contestants = {
        f"{mode}_{workers}": [
            f"parallel.mode={mode}",
            f"parallel.workers={workers}",
            f"train.steps={updates[mode][workers]}",
            *simulated,
        ]
        for mode in updates
        for workers in WORKERS
    }
    return {"scaling_samples_per_s": alternating(contestants, rounds)}
