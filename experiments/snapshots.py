"""Huang et al. 2017: snapshots at the ends of cosine cycles make an ensemble for the price of one training.

One model reads text for the same updates: with one cosine, and with three cycles that restart. The snapshots
after each third are an ensemble; those of the run without restarts are the control.

python -m experiments.snapshots [--folder DIR] [--seeds 3]
"""

from __future__ import annotations

from pathlib import Path

from experiments.plots import Axis, Line, curves
from experiments.runs import Run, command, evaluate, markdown, over_seeds, train_all

CYCLES = 3
STEPS = 900
COMMON = (
    "parallel={workers: 1, device: cpu}",
    "task_options={context: 64, validation_share: 0.005}",
    "model={name: gpt, layers: 2, heads: 4, width: 64}",
    f"train={{steps: {STEPS}, batch_size: 16, clip_norm: 1.0}}",
    "optimizer={name: adamw, lr: 3e-3, betas: [0.9, 0.95], weight_decay: 0.1}",
    "validation.every_steps=100000",
    f"checkpoint={{every_steps: {STEPS // CYCLES}, keep_last: {CYCLES}}}",
    "logging={every_steps: 50, tensorboard: false}",
)
WAYS = {
    "one cosine": "schedule={decay: cosine}",
    "restarts": f"schedule={{decay: {{kind: cosine_restarts, cycles: {CYCLES}}}}}",
}


def make(folder: Path, seeds: range) -> None:
    """Train both ways; print and plot the losses of each snapshot, and of the ensemble."""
    runs = {way: [_run(folder, way, seed) for seed in seeds] for way in WAYS}
    train_all([run for each in runs.values() for run in each], side_by_side=True)
    steps = [STEPS // CYCLES * (number + 1) for number in range(CYCLES)]
    rows = []
    lines: dict[str, Line] = {}
    for way, each in runs.items():
        found = [evaluate(run.run_dir, checkpoints=steps)["runs"][0] for run in each]
        snapshots = [over_seeds([one["replicas"][k]["val"]["loss"] for one in found]) for k in range(CYCLES)]
        together = over_seeds([one["ensemble"]["val"]["loss"] for one in found])
        rows.append((way, *snapshots, together))
        lines |= {way: dict(zip(steps, snapshots, strict=True)), f"{way}, ensemble": {STEPS: together}}
    head = ["validation loss", *(f"after {step}" for step in steps), "ensemble of the three"]
    print(markdown(head, rows))
    last_two = [(way, over_seeds([_last_two(run, steps) for run in each])) for way, each in runs.items()]
    print()
    print(markdown(["", "ensemble of the last two"], last_two))
    title = "Loss of each snapshot, and of the three as an ensemble"
    curves("snapshots", title, Axis("updates"), Axis("validation loss"), lines)


def _last_two(run: Run, steps: list[int]) -> float:
    return float(evaluate(run.run_dir, checkpoints=steps[-2:])["runs"][0]["ensemble"]["val"]["loss"])


def _run(folder: Path, way: str, seed: int) -> Run:
    return Run("text-gpt", folder / f"{way.replace(' ', '-')}-{seed}", (*COMMON, WAYS[way], f"seed={seed}"))


if __name__ == "__main__":
    command("snapshots", __doc__, make)
