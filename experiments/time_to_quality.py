"""Seconds and samples to one validation loss: every coupling on every kind of cluster.

One code, model and data, four workers. Computation is slept and faults are injected by the configuration's
section faults, from a seed, so that two cores carry them; measure on a machine that does nothing else.

The straggler is in replica 0, the one that is delivered. Replicas agree with a weight of 0.3: with 1, small
models that exchange this often overshoot each other (experiments/codistillation.py, overshoot).

python -m experiments.time_to_quality [--folder DIR] [--seeds 3]
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from dist_train.report.measured import measure
from experiments.runs import Run, command, is_done, lines_of, markdown, train_all

LOSS = 0.3
WORKERS = 4
SAMPLES = 32
STEP_S = 0.1
# Each replica's samples, and those between two validations.
LENGTH, BETWEEN = 11_520, 768
COMMON = (
    "model={name: mlp, hidden: [64]}",
    f"train={{samples: {LENGTH}, batch_size: {SAMPLES}, last_batch: drop}}",
    "optimizer={name: sgd, lr: 0.02, momentum: 0.9}",
    f"schedule={{base_batch: {SAMPLES}}}",
    "logging={every_steps: 10, tensorboard: false}",
    "recovery.backoff_s=0.2",
)


@dataclass(frozen=True)
class Coupling:
    """How four workers are coupled: an update takes ``groups`` gradients, of each of ``replicas`` models."""

    parallel: str
    groups: int
    replicas: int = 1
    codistill: str = "null"

    @property
    def every(self) -> int:
        """Updates between two validations: the same samples for all."""
        return BETWEEN // (SAMPLES * self.groups)


COUPLINGS = {
    "sync": Coupling("mode: sync, workers: 4", 4),
    "sync, two workers": Coupling("mode: sync, workers: 2", 2),
    "backup (3 + 1)": Coupling("mode: backup, workers: 4, backups: 1", 3),
    "async": Coupling("mode: async, workers: 4", 1),
    "bounded (s = 3)": Coupling("mode: bounded, max_staleness: 3, workers: 4", 1),
    "mixed (2 x 2, async)": Coupling("mode: async, workers: 4, group_size: 2", 2),
    "codistilled (2 x 2, sync)": Coupling(
        "mode: sync, workers: 2, replicas: 2", 2, 2, "{interval: 10, burn_in: 20, data: same, weight: 0.3}"
    ),
}
CLUSTERS = {
    "even": f"{{step_s: {STEP_S}}}",
    "one worker 5 times slower": f"{{step_s: {STEP_S}, slow: {{1: 5}}}}",
    "random delays": f"{{lognormal_sigma: 1.0, scale_s: {STEP_S}, seed: SEED}}",
    "workers die": f"{{step_s: {STEP_S}, mean_lifetime: 100, seed: SEED}}",
}


def make(folder: Path, seeds: range) -> None:
    """Train every coupling on every cluster; print seconds and samples to the loss."""
    runs = {
        (cluster, name): [_run(folder, cluster, name, seed) for seed in seeds]
        for cluster in CLUSTERS
        for name in COUPLINGS
    }
    train_all([run for seed in range(len(seeds)) for each in runs.values() for run in [each[seed]]])
    rows = []
    for name, coupling in COUPLINGS.items():
        cells = [
            cell([reached(run.run_dir, coupling.replicas) for run in runs[cluster, name]])
            for cluster in CLUSTERS
        ]
        rows.append((name, *cells))
    print(
        f"Seconds (and thousands of samples) to a validation loss of {LOSS}, median of {len(seeds)} seeds:\n"
    )
    print(markdown(["", *CLUSTERS], rows))


def reached(run_dir: Path, replicas: int, loss: float = LOSS) -> tuple[float, float]:
    """Return after how many seconds, recovery included, and samples of all replicas replica 0 had the loss.

    Infinite if it never had, or if the run gave up. Between two validations by a straight line.
    """
    part = run_dir / "replica_0" if replicas > 1 else run_dir
    history = measure("", part, points=100_000).history
    before: tuple[float, float, float] | None = None
    if not is_done(run_dir):
        return math.inf, math.inf
    for line in lines_of(part, "val"):
        now = line["loss"], history.clock_of(line["wall_s"]), float(line["samples"] * replicas)
        if now[0] <= loss:
            share = 1.0 if before is None else (before[0] - loss) / (before[0] - now[0])
            start = (0.0, 0.0, 0.0) if before is None else before
            return start[1] + share * (now[1] - start[1]), start[2] + share * (now[2] - start[2])
        before = now
    return math.inf, math.inf


def cell(found: list[tuple[float, float]]) -> str:
    """Write the median seconds with their range, and thousands of samples, of the runs that got there."""
    there = [each for each in found if math.isfinite(each[0])]
    if not there:
        return "not reached"
    seconds, samples = zip(*there, strict=True)
    share = "" if len(there) == len(found) else f", {len(there)} of {len(found)} runs"
    span = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
    return f"{span}; {statistics.median(samples) / 1000:.1f}k{share}"


def _run(folder: Path, cluster: str, name: str, seed: int) -> Run:
    coupling = COUPLINGS[name]
    overrides = (
        f"parallel={{{coupling.parallel}, device: cpu}}",
        *COMMON,
        f"codistill={coupling.codistill}",
        f"validation.every_steps={coupling.every}",
        # As often by samples as all others, for whoever has to go back to one.
        f"checkpoint={{every_steps: {coupling.every}, keep_last: 3}}",
        f"faults={CLUSTERS[cluster].replace('SEED', str(seed))}",
        f"seed={seed}",
    )
    words = f"{cluster} {name}".replace("(", "").replace(")", "").replace(",", "").replace("=", "").split()
    run_dir = folder / f"{'-'.join(words)}-{seed}"
    return Run("digits-sync", run_dir, overrides, may_fail="lifetime" in CLUSTERS[cluster])


if __name__ == "__main__":
    command("time_to_quality", __doc__, make)
