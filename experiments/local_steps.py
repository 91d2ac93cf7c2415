"""Douillard et al. 2023 (DiLoCo): many local steps and an outer Nesterov step cost little loss.

Two workers read text. Each hands in how far it has come after H steps, with 1/H of the communication.

python -m experiments.local_steps [--folder DIR] [--seeds 3]
"""

from __future__ import annotations

from pathlib import Path

from experiments.plots import Axis, curves
from experiments.runs import MeanAndSpread, Run, command, markdown, over_seeds, summary, train_all

WORKERS = 2
SAMPLES = 16
STEPS = 300
LENGTHS = (5, 10, 50)
COMMON = (
    "task_options={context: 64, validation_share: 0.005}",
    "model={name: gpt, layers: 2, heads: 4, width: 64}",
    "optimizer={name: adamw, lr: 2e-3, betas: [0.9, 0.95], weight_decay: 0.1}",
    "validation.every_steps=100000",
    "checkpoint.every_steps=100000",
    "logging={every_steps: 50, tensorboard: false}",
)
OUTER = {
    "averaging": "{kind: average}",
    "Nesterov 0.7, 0.9": "{kind: nesterov, lr: 0.7, momentum: 0.9}",
    # Remembers two rounds, and not ten.
    "Nesterov 0.7, 0.5": "{kind: nesterov, lr: 0.7, momentum: 0.5}",
}


def make(folder: Path, seeds: range) -> None:
    """Train alone, with gradients every step, and with local steps; print and plot the losses."""
    alone = [_run(folder, "alone", "workers: 1", SAMPLES, seed) for seed in seeds]
    together = [_run(folder, "sync", f"workers: {WORKERS}", SAMPLES * WORKERS, seed) for seed in seeds]
    local = {
        (outer, length): [_local(folder, outer, kind, length, seed) for seed in seeds]
        for outer, kind in OUTER.items()
        for length in LENGTHS
    }
    train_all([run for runs in (alone, together, *local.values()) for run in runs])
    rows: list[tuple[object, ...]] = [
        ("one worker alone", 0, _losses(alone)),
        ("two, gradients every step", STEPS, _losses(together)),
    ]
    lines: dict[str, dict[float, MeanAndSpread | float]] = {outer: {} for outer in OUTER}
    for (outer, length), runs in local.items():
        lines[outer][length] = _losses(runs)
        rows.append((f"two, {outer}, H = {length}", STEPS // length, _losses(runs)))
    print(markdown(["", "exchanges", "validation loss"], rows))
    bounds = {"one worker alone": alone, "gradients every step": together}
    curves(
        "local_steps",
        "Loss after the same steps against local steps",
        Axis("local steps H", log=True),
        Axis("validation loss"),
        dict(lines)
        | {name: dict.fromkeys(map(float, LENGTHS), _losses(runs).mean) for name, runs in bounds.items()},
    )


def _local(folder: Path, outer: str, kind: str, length: int, seed: int) -> Run:
    how = f"workers: {WORKERS}, mode: bounded, max_staleness: 0, local_steps: {length}, outer: {kind}"
    name = f"{outer.lower().replace(', ', '-').replace(' ', '-')}-{length}"
    return _run(folder, name, how, SAMPLES * WORKERS, seed)


def _run(folder: Path, name: str, parallel: str, samples: int, seed: int) -> Run:
    length = f"train={{samples: {STEPS * samples}, batch_size: {SAMPLES}, clip_norm: 1.0}}"
    warmup = f"{{kind: gradual, samples: {STEPS * samples // 10}, start_lr: 0}}"
    warm = f"schedule={{warmup: {warmup}, decay: cosine}}"
    how = f"parallel={{{parallel}, device: cpu}}"
    return Run("text-gpt", folder / f"{name}-{seed}", (how, *COMMON, length, warm, f"seed={seed}"))


def _losses(runs: list[Run]) -> MeanAndSpread:
    return over_seeds([summary(run.run_dir)["val"]["loss"] for run in runs])


if __name__ == "__main__":
    command("local_steps", __doc__, make)
