"""Chen et al. 2016: under random delays a few backup workers shorten a step by more than they cost.

Eight machines, of which an update waits for the first N = 8 - b. A step's time against b, and samples per
second, beside what order statistics predict of independent delays, and of workers that first finish what they
have begun.

python -m experiments.backup_workers [--folder DIR] [--seeds 3]
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import fmean, quantiles

from benchmarks.arrivals import expected_wait, lognormal, simulated_wait
from experiments.plots import Axis, curves
from experiments.runs import MeanAndSpread, Run, command, lines_of, markdown, over_seeds, summary, train_all

MACHINES = 8
SAMPLES = 8
UPDATES = 80
BACKUPS = range(4)
# A long tail, as in the arrivals of real clusters: a gradient in twenty takes five times the median.
MEDIAN_S, SIGMA = 0.1, 1.0
HEAD = [
    "b",
    "s per update",
    "median",
    "90th of 100",
    "order statistic",
    "with late workers",
    "speed-up",
    "predicted",
    "dropped per update",
]
COMMON = (
    f"train={{steps: {UPDATES}, batch_size: {SAMPLES}, last_batch: drop}}",
    "model={name: mlp, hidden: [64]}",
    "optimizer={name: sgd, lr: 0.02, momentum: 0.9}",
    f"schedule={{base_batch: {SAMPLES}}}",
    "validation.every_steps=1000",
    "checkpoint.every_steps=100000",
    "logging={every_steps: 1, tensorboard: false}",
)


def make(folder: Path, seeds: range) -> None:
    """Train with every number of backup workers; print and plot step times and speeds beside predictions."""
    runs = {b: [_run(folder, b, seed) for seed in seeds] for b in BACKUPS}
    train_all([run for each in runs.values() for run in each])
    times = {b: [step_times(run.run_dir) for run in each] for b, each in runs.items()}
    steps: dict[float, MeanAndSpread | float] = {b: over_seeds([fmean(t) for t in times[b]]) for b in BACKUPS}
    independent, busy = predictions()
    # Updates needed are taken to fall as their samples grow: the linear regime of the paper's cost model.
    gains = {
        b: [(1 - b / MACHINES) * fmean(times[0][k]) / fmean(t) for k, t in enumerate(times[b])]
        for b in BACKUPS
    }
    rows = [
        (
            b,
            steps[b],
            over_seeds([quantiles(each, n=10)[4] for each in times[b]]),
            over_seeds([quantiles(each, n=10)[8] for each in times[b]]),
            f"{independent[b]:.3f}",
            f"{busy[b]:.3f}",
            over_seeds(gains[b]),
            f"{share(b) * busy[0] / busy[b]:.2f}",
            over_seeds([_dropped(run) for run in runs[b]]),
        )
        for b in BACKUPS
    ]
    print(markdown(HEAD, rows))
    curves(
        "backup_workers",
        "Time of an update against backup workers",
        Axis("backup workers b of 8"),
        Axis("seconds per update"),
        {"measured": steps, "N-th order statistic": independent, "late workers finish first": busy},
    )
    curves(
        "backup_workers_speed",
        "Normalised speed-up against backup workers",
        Axis("backup workers b of 8"),
        Axis("speed-up over b = 0"),
        {
            "measured": {b: over_seeds(gains[b]) for b in BACKUPS},
            "N-th order statistic": {
                b: (1 - b / MACHINES) * independent[0] / s for b, s in independent.items()
            },
            "late workers finish first": {b: share(b) * busy[0] / s for b, s in busy.items()},
        },
    )


def share(b: float) -> float:
    """Return the samples of an update with b backup workers, as a share of those without."""
    return 1 - b / MACHINES


def step_times(run_dir: Path) -> list[float]:
    """Return the seconds of each update, after a first quarter in which workers get going."""
    lines = lines_of(run_dir, "train")
    lines = lines[len(lines) // 4 :]
    return [
        (now["wall_s"] - before["wall_s"]) / (now["step"] - before["step"]) for before, now in pairwise(lines)
    ]


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


def _dropped(run: Run) -> float:
    """Return the gradients dropped in an update, b where everybody is always at work."""
    found = summary(run.run_dir)
    return float(found["gradients"]["dropped"] / found["steps"])


if __name__ == "__main__":
    command("backup_workers", __doc__, make)
