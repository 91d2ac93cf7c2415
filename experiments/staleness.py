"""Zhang et al. 2015 and Zheng et al. 2016: what a stale gradient is worth.

Twelve learners; hardsync waits for all, n-softsync for 12 / n gradients, which are then about n updates
stale. The rate is that of hardsync throughout, as in the paper.

python -m experiments.staleness [--folder DIR] [--seeds 3]
"""

from __future__ import annotations

from pathlib import Path

from experiments.plots import Axis, curves
from experiments.runs import MeanAndSpread, Run, command, lines_of, markdown, over_seeds, summary, train_all

LEARNERS = 12
SAMPLES = 8
EPOCHS = 12
COMMON = (
    f"train={{epochs: {EPOCHS}, batch_size: {SAMPLES}}}",
    "model={name: mlp, hidden: [64]}",
    "optimizer={name: sgd, lr: 0.2, momentum: 0.9}",
    # One rate for all: the paper's alpha_0 is that of hardsync.
    "schedule={decay: {kind: step, milestones: [8, 11], gamma: 0.1}}",
    "faults.step_s=0.02",
    "checkpoint.every_steps=100000",
    "logging={every_steps: 100, tensorboard: false}",
)
DAMPINGS = {"none": "none", "inverse": "inverse", "delay compensated": "{kind: delay_compensated}"}
SPLITS = (1, 2, 4, 12)


def make(folder: Path, seeds: range) -> None:
    """Train with every staleness and damping; print and plot the errors."""
    hard = [_run(folder, "hardsync", "mode: sync", seed) for seed in seeds]
    soft = {
        (split, damping): [
            _run(folder, f"softsync-{split}-{damping.replace(' ', '-')}", _softsync(split, kind), seed)
            for seed in seeds
        ]
        for split in SPLITS
        for damping, kind in DAMPINGS.items()
    }
    train_all([run for runs in (hard, *soft.values()) for run in runs])
    rows: list[tuple[object, ...]] = [("hardsync", 0, *_measured(hard))]
    lines: dict[str, dict[float, MeanAndSpread]] = {damping: {} for damping in DAMPINGS}
    for (split, damping), runs in soft.items():
        staleness = over_seeds([summary(run.run_dir)["staleness"]["mean"] for run in runs])
        error, loss = _measured(runs)
        rows.append((f"{split}-softsync, damping {damping}", staleness, error, loss))
        lines[damping][split] = error
    print(markdown(["", "mean staleness", "validation error, %", "validation loss"], rows))
    curves(
        "staleness",
        "Error against staleness, at the rate of hardsync",
        Axis("n of n-softsync, about the mean staleness", log=True),
        Axis("validation error, %", log=True),
        {f"damping {damping}": line for damping, line in lines.items()}
        | {"hardsync": dict.fromkeys(map(float, SPLITS), _measured(hard)[0].mean)},
    )


def _softsync(split: int, damping: str) -> str:
    return f"mode: async, aggregate: {LEARNERS // split}, damping: {damping}"


def _run(folder: Path, name: str, parallel: str, seed: int) -> Run:
    how = f"parallel={{{parallel}, workers: {LEARNERS}, device: cpu}}"
    return Run("digits-async", folder / f"{name}-{seed}", (how, *COMMON, f"seed={seed}"))


def _measured(runs: list[Run]) -> tuple[MeanAndSpread, MeanAndSpread]:
    """Return error in per cent and loss at the end; a run that does not train has the error of guessing."""
    last = [lines_of(run.run_dir, "val")[-1] for run in runs]
    errors = [100 * (1 - line["accuracy"]) for line in last]
    return over_seeds(errors), over_seeds([line["loss"] for line in last])


if __name__ == "__main__":
    command("staleness", __doc__, make)
