"""Goyal et al. 2017: large batches with a linearly scaled rate and a warmup lose nothing, up to an elbow.

The batch grows by accumulation, so that batch-norm statistics are of 32 samples throughout, as in the paper.

python -m experiments.large_batch [--folder DIR] [--seeds 3]
"""

from __future__ import annotations

import statistics
from pathlib import Path

from experiments.plots import Axis, Line, curves
from experiments.runs import MeanAndSpread, Run, command, lines_of, markdown, over_seeds, summary, train_all

SAMPLES = 32
BATCHES = (32, 64, 128, 256, 512, 1024)
# The last before the elbow, and the first beyond it.
LARGE = (256, 512)
EPOCHS = 30
COMMON = (
    "parallel={workers: 1, device: cpu}",
    f"train={{epochs: {EPOCHS}, batch_size: {SAMPLES}, last_batch: drop}}",
    "checkpoint.every_steps=100000",
    "logging={every_steps: 50, tensorboard: false}",
)
# As in the paper 5 of 90 epochs, drops after 30, 60 and 80: here a third of each.
DECAY = "decay: {kind: step, milestones: [10, 20, 27], gamma: 0.1}"
GRADUAL = "warmup: {kind: gradual, epochs: 2}"
WAYS = {
    "gradual warmup": f"schedule={{base_batch: {SAMPLES}, {GRADUAL}, {DECAY}}}",
    "constant warmup": f"schedule={{base_batch: {SAMPLES}, warmup: {{kind: constant, epochs: 2}}, {DECAY}}}",
    "no warmup": f"schedule={{base_batch: {SAMPLES}, {DECAY}}}",
    "square root": f"schedule={{base_batch: {SAMPLES}, scaling: sqrt, {GRADUAL}, {DECAY}}}",
    "not scaled": f"schedule={{{DECAY}}}",
}
RECIPE = "gradual warmup"


def make(folder: Path, seeds: range) -> None:
    """Train every batch by the recipe, and the large ones in the other ways; print and plot the errors."""
    recipe = {batch: [_run(folder, RECIPE, batch, seed) for seed in seeds] for batch in BATCHES}
    ways = {
        (way, batch): [_run(folder, way, batch, seed) for seed in seeds] for way in WAYS for batch in LARGE
    }
    train_all([run for runs in (*recipe.values(), *ways.values()) for run in runs], side_by_side=True)
    errors: dict[float, MeanAndSpread | float] = {batch: _errors(runs) for batch, runs in recipe.items()}
    rows = [
        (
            f"{batch}",
            f"{0.1 * batch / SAMPLES:g}",
            summary(runs[0].run_dir)["steps"],
            errors[batch],
            _losses(runs),
        )
        for batch, runs in recipe.items()
    ]
    print(markdown(["batch", "rate", "updates", "validation error, %", "loss"], rows))
    for batch in LARGE:
        print()
        found = [(way, _errors(ways[way, batch]), _losses(ways[way, batch])) for way in WAYS]
        print(markdown([f"batch {batch}", "error, %", "loss"], found))
    others: dict[str, Line] = {
        way: {batch: _errors(ways[way, batch]) for batch in LARGE} for way in WAYS if way != RECIPE
    }
    curves(
        "large_batch",
        "Error against the batch: flat, then an elbow",
        Axis("samples of an update", log=True),
        Axis("validation error, %", log=True),
        {"linear scaling, gradual warmup": errors, **others},
    )


def _run(folder: Path, way: str, batch: int, seed: int) -> Run:
    overrides = (*COMMON, WAYS[way], f"train.accumulate={batch // SAMPLES}", f"seed={seed}")
    return Run("digits-sync", folder / f"{way.replace(' ', '-')}-{batch}-{seed}", overrides)


def _errors(runs: list[Run]) -> MeanAndSpread:
    """Take the median error of the last five epochs of each run, in per cent, as the paper does."""
    found = []
    for run in runs:
        last = [100 * (1 - line["accuracy"]) for line in lines_of(run.run_dir, "val")[-5:]]
        found.append(statistics.median(last))
    return over_seeds(found)


def _losses(runs: list[Run]) -> MeanAndSpread:
    return over_seeds(
        [statistics.median(line["loss"] for line in lines_of(run.run_dir, "val")[-5:]) for run in runs]
    )


if __name__ == "__main__":
    command("large_batch", __doc__, make)
