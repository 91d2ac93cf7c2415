"""Zhang et al. 2015 and Zheng et al. 2016: what a stale gradient is worth.

Eight learners; hardsync waits for all, n-softsync for 8 / n gradients, which are then about n updates
stale. The rate is that of hardsync throughout, as in the paper. Two controls tell staleness from a rate that
is too high for the samples of an update: one learner with that rate, whose gradients are never stale, and
8-softsync with an eighth of it, where delay compensation is tried as well.

python -m experiments.staleness [--folder DIR] [--seeds 3]
"""

from __future__ import annotations

import statistics
from pathlib import Path

from experiments.plots import Axis, curves
from experiments.runs import (
    MeanAndSpread,
    Run,
    command,
    is_done,
    lines_of,
    markdown,
    over_seeds,
    summary,
    train_all,
)

LEARNERS = 8
SAMPLES = 8
EPOCHS = 12
RATE = 0.05
COMMON = (
    f"train={{epochs: {EPOCHS}, batch_size: {SAMPLES}, last_batch: drop}}",
    "model={name: mlp, hidden: [64]}",
    f"optimizer={{name: sgd, lr: {RATE}, momentum: 0.9}}",
    # One rate for all: the paper's alpha_0 is that of hardsync.
    "schedule={decay: {kind: step, milestones: [8, 11], gamma: 0.1}}",
    "faults.step_s=0.02",
    "checkpoint.every_steps=100000",
    "logging={every_steps: 100, tensorboard: false}",
)
DAMPINGS = {"none": "none", "inverse": "inverse", "delay compensated": "{kind: delay_compensated}"}
SPLITS = (1, 8)


def make(folder: Path, seeds: range) -> None:
    """Train with every staleness and damping; print and plot the errors."""
    others = {
        "hardsync": [_run(folder, "hardsync", f"mode: sync, workers: {LEARNERS}", seed) for seed in seeds],
        "one learner": [_run(folder, "one", "mode: sync, workers: 1", seed) for seed in seeds],
    } | {
        f"{LEARNERS}-softsync, rate / {LEARNERS}, damping {damping}": [
            _run(folder, f"{name}-slow", _softsync(LEARNERS, DAMPINGS[damping]), seed, RATE / LEARNERS)
            for seed in seeds
        ]
        for name, damping in (("softsync", "none"), ("compensated", "delay compensated"))
    }
    soft = {
        (split, damping): [
            _run(folder, f"softsync-{split}-{damping.replace(' ', '-')}", _softsync(split, kind), seed)
            for seed in seeds
        ]
        for split in SPLITS
        for damping, kind in DAMPINGS.items()
        # Staleness 1 counts as much as 0: there is nothing to divide by.
        if split > 1 or damping == "none"
    }
    train_all([run for runs in (*others.values(), *soft.values()) for run in runs])
    rows: list[tuple[object, ...]] = [
        (name, _staleness(runs), *_measured(runs)) for name, runs in others.items()
    ]
    lines: dict[str, dict[float, MeanAndSpread]] = {damping: {} for damping in DAMPINGS}
    for (split, damping), runs in soft.items():
        error, loss = _measured(runs)
        rows.append((f"{split}-softsync, damping {damping}", _staleness(runs), error, loss))
        lines[damping][split] = error
    print(markdown(["", "mean staleness", "validation error, %", "validation loss"], rows))
    curves(
        "staleness",
        "Error against staleness, at the rate of hardsync",
        Axis("n of n-softsync, about the mean staleness", log=True),
        Axis("validation error, %", log=True),
        {f"damping {damping}": line for damping, line in lines.items()}
        | {"hardsync": dict.fromkeys(map(float, SPLITS), _measured(others["hardsync"])[0].mean)},
    )


def _softsync(split: int, damping: str) -> str:
    return f"mode: async, aggregate: {LEARNERS // split}, damping: {damping}, workers: {LEARNERS}"


def _run(folder: Path, name: str, parallel: str, seed: int, rate: float = RATE) -> Run:
    overrides = (f"parallel={{{parallel}, device: cpu}}", *COMMON, f"optimizer.lr={rate}", f"seed={seed}")
    return Run("digits-async", folder / f"{name}-{seed}", overrides, may_fail=True)


def _measured(runs: list[Run]) -> tuple[MeanAndSpread, MeanAndSpread | str]:
    """Return error in per cent and loss at the end; where the loss was not finite, the error of guessing."""
    done = [run for run in runs if is_done(run.run_dir)]
    last = [lines_of(run.run_dir, "val")[-1] for run in done]
    errors = [100 * (1 - line["accuracy"]) for line in last] + [90.0] * (len(runs) - len(done))
    if len(done) < len(runs):
        return over_seeds(errors), f"not finite in {len(runs) - len(done)} of {len(runs)}"
    return over_seeds(errors), over_seeds([line["loss"] for line in last])


def _staleness(runs: list[Run]) -> str:
    means = [
        summary(run.run_dir).get("staleness", {"mean": 0.0})["mean"] for run in runs if is_done(run.run_dir)
    ]
    return f"{statistics.fmean(means):.3g}" if means else "-"


if __name__ == "__main__":
    command("staleness", __doc__, make)
