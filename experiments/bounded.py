"""Ho et al. 2013: bounded staleness waits less than lockstep, and learns more than no bound at all.

Four workers with random delays, one of them three times slower; the bound s from lockstep to none. With s = 0
an update takes the gradients of all four, at four times the rate; otherwise one.

python -m experiments.bounded [--folder DIR] [--seeds 3]
"""

from __future__ import annotations

from pathlib import Path

from experiments.plots import Axis, curves
from experiments.runs import Run, command, lines_of, markdown, over_seeds, summary, train_all

WORKERS = 4
SAMPLES = 32
EPOCHS = 10
BOUNDS: dict[str, str] = {
    "0": "mode: bounded, max_staleness: 0",
    "1": "mode: bounded, max_staleness: 1",
    "3": "mode: bounded, max_staleness: 3",
    "10": "mode: bounded, max_staleness: 10",
    "none": "mode: async",
}
# Where the curve of no bound ends.
NO_BOUND = 30.0
COMMON = (
    f"train={{epochs: {EPOCHS}, batch_size: {SAMPLES}, last_batch: drop}}",
    "model={name: mlp, hidden: [64]}",
    "optimizer={name: sgd, lr: 0.05, momentum: 0.9}",
    f"schedule={{base_batch: {SAMPLES}}}",
    "checkpoint.every_steps=100000",
    "logging={every_steps: 20, tensorboard: false}",
)


def make(folder: Path, seeds: range) -> None:
    """Train with every bound; print and plot seconds, waiting and loss after the same samples."""
    runs = {bound: [_run(folder, bound, seed) for seed in seeds] for bound in BOUNDS}
    train_all([run for each in runs.values() for run in each])
    seconds, waiting, losses, rows = {}, {}, {}, []
    for (bound, each), at in zip(runs.items(), (0.0, 1.0, 3.0, 10.0, NO_BOUND), strict=True):
        found = [summary(run.run_dir) for run in each]
        walls = [lines_of(run.run_dir, "val")[-1]["wall_s"] for run in each]
        seconds[at] = over_seeds(walls)
        waited = [one["waiting"]["bound"] + one["waiting"]["quorum"] for one in found]
        waiting[at] = over_seeds([w / (WORKERS * wall) for w, wall in zip(waited, walls, strict=True)])
        losses[at] = over_seeds([one["val"]["loss"] for one in found])
        stale = over_seeds([one["staleness"]["mean"] for one in found])
        most = max(one["staleness"]["max"] for one in found)
        rows.append((bound, seconds[at], waiting[at], stale, most, losses[at]))
    head = ["s", "seconds", "share of time waiting", "mean staleness", "largest", "validation loss"]
    print(markdown(head, rows))
    x = Axis(f"bound s ({NO_BOUND:g}: none)")
    curves("bounded", "Seconds for the same samples against the bound", x, Axis("seconds"), {"": seconds})
    curves("bounded_loss", "Loss after the same samples against the bound", x, Axis("loss"), {"": losses})


def _run(folder: Path, bound: str, seed: int) -> Run:
    how = f"parallel={{{BOUNDS[bound]}, workers: {WORKERS}, device: cpu}}"
    delays = f"faults={{lognormal_sigma: 1.0, scale_s: 0.05, slow: {{0: 3}}, seed: {seed}}}"
    return Run("digits-bounded", folder / f"{bound}-{seed}", (how, *COMMON, delays, f"seed={seed}"))


if __name__ == "__main__":
    command("bounded", __doc__, make)
