"""Chen et al. 2016: under random delays a few backup workers shorten a step by more than they cost.

Eight machines, of which an update waits for the first N = 8 - b. A step's time against b, and samples per
second, beside what order statistics predict of independent delays, and of workers that first finish what they
have begun.

python -m experiments.backup_workers [--folder DIR] [--seeds 3]
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.arrivals import expected_wait, lognormal, simulated_wait
from benchmarks.runs import steady_speed
from experiments.plots import Axis, curves
from experiments.runs import MeanAndSpread, Run, command, lines_of, markdown, over_seeds, summary, train_all

MACHINES = 8
SAMPLES = 8
UPDATES = 120
BACKUPS = range(5)
# A long tail, as in the arrivals of real clusters: a gradient in twenty takes five times the median.
MEDIAN_S, SIGMA = 0.1, 1.0
COMMON = (
    f"train={{steps: {UPDATES}, batch_size: {SAMPLES}}}",
    "model={name: mlp, hidden: [64]}",
    "optimizer={name: sgd, lr: 0.02, momentum: 0.9}",
    f"schedule={{base_batch: {SAMPLES}}}",
    "validation.every_steps=1000",
    "checkpoint.every_steps=100000",
    "logging={every_steps: 5, tensorboard: false}",
)


def make(folder: Path, seeds: range) -> None:
    """Train with every number of backup workers; print and plot step times and speeds beside predictions."""
    runs = {b: [_run(folder, b, seed) for seed in seeds] for b in BACKUPS}
    train_all([run for each in runs.values() for run in each])
    speeds = {b: [steady_speed(lines_of(run.run_dir, "train")) for run in each] for b, each in runs.items()}
    steps: dict[float, MeanAndSpread | float] = {
        b: over_seeds([(MACHINES - b) * SAMPLES / s for s in each]) for b, each in speeds.items()
    }
    independent, busy = predictions()
    dropped = {b: over_seeds([_dropped_share(run) for run in each]) for b, each in runs.items()}
    head = [
        "b",
        "s per update",
        "order statistic",
        "with late workers",
        "samples/s",
        "predicted",
        "dropped, %",
    ]
    print(
        markdown(
            head,
            [
                (
                    b,
                    steps[b],
                    f"{independent[b]:.3f}",
                    f"{busy[b]:.3f}",
                    over_seeds(speeds[b]),
                    f"{(MACHINES - b) * SAMPLES / busy[b]:.0f}",
                    dropped[b],
                )
                for b in BACKUPS
            ],
        )
    )
    curves(
        "backup_workers",
        "Time of an update against backup workers",
        Axis("backup workers b of 8"),
        Axis("seconds per update"),
        {"measured": steps, "N-th order statistic": independent, "late workers finish first": busy},
    )
    curves(
        "backup_workers_speed",
        "Samples per second against backup workers",
        Axis("backup workers b of 8"),
        Axis("samples/s that count"),
        {
            "measured": {b: over_seeds(each) for b, each in speeds.items()},
            "N-th order statistic": {b: (MACHINES - b) * SAMPLES / s for b, s in independent.items()},
            "late workers finish first": {b: (MACHINES - b) * SAMPLES / s for b, s in busy.items()},
        },
    )


def predictions() -> tuple[dict[float, float], dict[float, float]]:
    """Return by b the seconds of an update: of independent delays, and where late workers finish first."""
    within = lognormal(MEDIAN_S, SIGMA)
    independent = {float(b): expected_wait(MACHINES - b, MACHINES, within, 200 * MEDIAN_S) for b in BACKUPS}
    busy = {float(b): simulated_wait(MACHINES - b, MACHINES, MEDIAN_S, SIGMA) for b in BACKUPS}
    return independent, busy


def _run(folder: Path, b: int, seed: int) -> Run:
    how = f"parallel={{mode: backup, workers: {MACHINES}, backups: {b}, device: cpu}}"
    delays = f"faults={{lognormal_sigma: {SIGMA}, scale_s: {MEDIAN_S}, seed: {seed}}}"
    return Run("digits-backup", folder / f"{b}-{seed}", (how, *COMMON, delays, f"seed={seed}"))


def _dropped_share(run: Run) -> float:
    gradients = summary(run.run_dir)["gradients"]
    return 100 * float(gradients["dropped"] / gradients["computed"])


if __name__ == "__main__":
    command("backup_workers", __doc__, make)
