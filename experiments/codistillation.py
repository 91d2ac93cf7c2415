"""Anil et al. 2018: fewer updates to the same loss with disjoint data, and less churn between retrains.

python -m experiments.codistillation [text] [scarce] [long] [transfer] [noisy] [churn] [intervals] [overshoot]
    [weight_decay] [--folder DIR] [--seeds 4]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from experiments.plots import Axis, Line, curves
from experiments.runs import (
    ROOT,
    Curve,
    MeanAndSpread,
    evaluate,
    lines_of,
    over_seeds,
    train,
    validations,
)

# A rate that stays, so that a loss is not reached because training ends.
TEXT = (
    "train.steps=600",
    "schedule={warmup: {kind: gradual, steps: 50, start_lr: 0}}",
    "validation.every_steps=50",
    "checkpoint.every_steps=600",
)
HOW = {
    "apart": "codistill=null",
    "disjoint": "codistill={burn_in: 50, interval: 50}",
    "same": "codistill={burn_in: 50, interval: 50, data: same}",
}


def text(folder: Path, seeds: int) -> None:
    """Print after how many updates each way reaches what one replica alone comes to."""
    _compare(folder, seeds, "codistillation", "Codistillation on text: loss against updates")


def scarce(folder: Path, seeds: int) -> None:
    """The same where text is scarce: 200,000 bytes, so that each sample is seen again and again."""
    options = "task_options={context: 64, validation_share: 0.1, max_bytes: 200000}"
    _compare(folder / "scarce", seeds, "codistillation_scarce", "The same, text being scarce", (options,))


def long(folder: Path, seeds: int) -> None:
    """The same over five times as many updates, where there is less left to learn from the data."""
    lengths = ("train.steps=3000", "validation.every_steps=250", "checkpoint.every_steps=3000")
    title = "The same, five times as long"
    _compare(folder / "long", seeds, "codistillation_long", title, lengths, ("apart", "disjoint"))


def _compare(
    folder: Path,
    seeds: int,
    plot: str,
    title: str,
    further: Sequence[str] = (),
    ways: Sequence[str] = tuple(HOW),
) -> None:
    found: dict[str, list[Curve]] = {name: [] for name in ways}
    for seed in range(seeds):
        for name in ways:
            run_dir = folder / f"text-{name}-{100 * seed}"
            settings = (f"seed={100 * seed}", HOW[name], *TEXT, *further)
            train(ROOT / "configs/text-codistill.yaml", run_dir, *settings)
            found[name].append(validations(run_dir / "replica_0"))
    for name, of_seeds in found.items():
        losses = over_seeds([curve.final for curve in of_seeds])
        pairs = zip(of_seeds, found["apart"], strict=True)
        shares = [own.steps_to(single.final) / single.steps[-1] for own, single in pairs]
        told = ", ".join(f"{share:.2f}" for share in shares)
        print(f"text  {name:9} final validation loss {losses}; share of the updates to reach it: {told}")
    runs = {name: [folder / f"text-{name}-{100 * seed}" for seed in range(seeds)] for name in ways}
    ensembles = [evaluate(run_dir)["runs"][0]["ensemble"]["val"]["loss"] for run_dir in runs["apart"]]
    print(f"text  ensemble of two, final validation loss {over_seeds(ensembles)}")
    for name, directories in runs.items():
        print_churn(f"text  {name}", directories)
    draw_losses(plot, title, found)


def draw_losses(plot: str, title: str, found: Mapping[str, Sequence[Curve]]) -> None:
    """Draw the loss of each way against updates; the first validation, of hardly any, is left out."""
    lines: dict[str, Line] = {}
    for name, of_seeds in found.items():
        by_step = zip(of_seeds[0].steps, zip(*(curve.losses for curve in of_seeds), strict=True), strict=True)
        lines[name] = {step: over_seeds(losses) for step, losses in list(by_step)[1:]}
    curves(plot, title, Axis("updates"), Axis("validation loss", log=True), lines)


def transfer(folder: Path, seeds: int) -> None:
    """Print what replicas come to that see half of the digits each, with and without teaching each other."""
    for weight in (0, 1):
        how = f"codistill={{burn_in: 46, interval: 20, weight: {weight}}}"
        found = []
        for seed in range(seeds):
            run_dir = folder / f"transfer-{weight}-{100 * seed}"
            train(ROOT / "configs/digits-codistill.yaml", run_dir, f"seed={100 * seed}", how)
            found += [evaluate(run_dir)["runs"][0]["replicas"][0]["val"]]
        losses, right = ([each[name] for each in found] for name in ("loss", "accuracy"))
        print(f"transfer weight {weight}: loss {over_seeds(losses)}, accuracy {over_seeds(right)}")


def noisy(folder: Path, seeds: int) -> None:
    """Print what replicas come to where labels do not say everything: four of ten are drawn at random."""
    common = (
        "task=experiments/noisy_digits.py:NoisyDigits",
        "model={name: mlp, hidden: [256]}",
        "optimizer={name: sgd, lr: 0.02, momentum: 0.9}",
        "schedule={decay: constant}",
        "train={steps: 3000, batch_size: 32}",
        # So that replicas keep about the same pace.
        "faults.step_s=0.006",
        "validation.every_steps=200",
        "checkpoint.every_steps=3000",
        "logging={every_steps: 50, tensorboard: false}",
    )
    taught = "burn_in: 100, interval: 50"
    ways = {
        "all of it, apart": "codistill=null",
        "all of it, taught": f"codistill={{{taught}, data: same}}",
        "half each, apart": f"codistill={{{taught}, weight: 0}}",
        "half each, taught": f"codistill={{{taught}}}",
    }
    found: dict[str, list[Curve]] = {}
    for name, how in ways.items():
        right, together = [], []
        for seed in range(seeds):
            run_dir = folder / f"noisy-{name.replace(', ', '-').replace(' ', '-')}-{100 * seed}"
            train(ROOT / "configs/digits-codistill.yaml", run_dir, f"seed={100 * seed}", how, *common)
            found.setdefault(name, []).append(validations(run_dir / "replica_0"))
            right.append(lines_of(run_dir / "replica_0", "val")[-1]["accuracy"])
            together.append(evaluate(run_dir)["runs"][0]["ensemble"]["val"]["loss"])
        print(
            f"noisy {name:18} loss {over_seeds([curve.final for curve in found[name]])}, "
            f"lowest on the way {over_seeds([min(curve.losses) for curve in found[name]])}, "
            f"accuracy {over_seeds(right)}, loss of the ensemble {over_seeds(together)}"
        )
    draw_losses("codistillation_noisy", "Digits, four of ten labels drawn at random", found)


def churn(folder: Path, seeds: int) -> None:
    """Print how far two retrains are apart: of one model, of an ensemble, of a codistilled copy."""
    short = ("train.epochs=20", "schedule={base_batch: 32, decay: {kind: cosine}}")
    taught = "burn_in: 45, interval: 10, data: same"
    ways = {
        "apart": "codistill=null",
        "codistilled": f"codistill={{{taught}}}",
        "codistilled gently": f"codistill={{{taught}, weight: 0.3}}",
    }
    runs: dict[str, list[Path]] = {name: [] for name in ways}
    for seed in range(2 * seeds):
        for name, how in ways.items():
            run_dir = folder / f"churn-{name.replace(' ', '-')}-{100 * seed}"
            settings = (f"seed={100 * seed}", how, *short, "model={name: mlp, hidden: [64]}")
            runs[name].append(
                train(ROOT / "configs/digits-codistill.yaml", run_dir, *settings, "optimizer.lr=0.05")
            )
    for name, found in runs.items():
        print_churn(f"digits {name}", found)


def intervals(folder: Path, seeds: int) -> None:
    """Print and plot what snapshots every 1 to 250 updates come to on text."""
    losses: dict[float, MeanAndSpread] = {}
    for interval in (1, 10, 50, 250):
        found = []
        for seed in range(seeds):
            # Those of every 50 updates are the runs of the experiment text.
            name = "text-disjoint" if interval == 50 else f"text-every-{interval}"
            how = f"codistill={{burn_in: 50, interval: {interval}}}"
            run_dir = folder / f"{name}-{100 * seed}"
            train(ROOT / "configs/text-codistill.yaml", run_dir, f"seed={100 * seed}", how, *TEXT)
            found.append(validations(run_dir / "replica_0").final)
        losses[interval] = over_seeds(found)
        print(f"text  a snapshot every {interval:3} updates: final validation loss {losses[interval]}")
    curves(
        "codistillation_intervals",
        "Loss after 600 updates against the interval of snapshots",
        Axis("updates between snapshots", log=True),
        Axis("validation loss"),
        {"codistilled": losses},
    )


def overshoot(folder: Path, seeds: int) -> None:
    """Print what becomes of replicas that catch up with each other's snapshots before the next ones come.

    Two small models in step, a snapshot every 10 updates: each moves to where the other was, and with
    momentum beyond it.
    """
    common = (
        "model={name: mlp, hidden: [64]}",
        "train={samples: 19200, batch_size: 64}",
        "schedule={base_batch: 32}",
        "faults.step_s=0.03",
        "validation.every_steps=1000",
        "logging={every_steps: 10, tensorboard: false}",
    )
    optimizers = {
        "momentum 0.9": "{name: sgd, lr: 0.02, momentum: 0.9}",
        "no momentum": "{name: sgd, lr: 0.2, momentum: 0}",
    }
    for momentum, optimizer in optimizers.items():
        for weight in (0, 0.3, 1) if momentum != "no momentum" else (1,):
            losses, apart = [], []
            for seed in range(seeds):
                run_dir = folder / f"overshoot-{momentum.split()[-1]}-{weight}-{100 * seed}"
                how = f"codistill={{burn_in: 20, interval: 10, data: same, weight: {weight}, max_age: 200}}"
                settings = (f"seed={100 * seed}", how, f"optimizer={optimizer}", *common)
                train(ROOT / "configs/digits-codistill.yaml", run_dir, *settings)
                losses.append(validations(run_dir / "replica_0").final)
                agreed = [
                    line["agreement"] for line in lines_of(run_dir / "replica_0", "train")[-10:] if weight
                ]
                apart.append(sum(agreed) / 10)
            print(
                f"overshoot {momentum:12} weight {weight:3}: validation loss {over_seeds(losses)}; "
                f"agreement over the last 100 updates {over_seeds(apart)}"
            )


def weight_decay(folder: Path, seeds: int) -> None:
    """Print what less and less weight decay does to codistilled replicas, and to all-reduce.

    As in Sodhani et al. 2020: two workers either way, as many updates, milestones at a third and two thirds.
    """
    ways = {
        "all-reduce": (30, ("parallel={workers: 2, device: cpu}", "codistill=null")),
        "codistilled": (
            15,
            ("parallel={workers: 1, replicas: 2, device: cpu}", "codistill={interval: 20, data: same}"),
        ),
    }
    for name, (epochs, how) in ways.items():
        milestones = [epochs // 3, 2 * epochs // 3]
        for course in ("constant", "falling"):
            factors = f", weight_decay: {{milestones: {milestones}, factors: [0.1, 0]}}"
            trained, found = [], []
            for seed in range(seeds):
                run_dir = folder / f"decay-{name}-{course}-{100 * seed}"
                decay = (
                    f"decay: {{kind: step, milestones: {milestones}}}{factors if course == 'falling' else ''}"
                )
                settings = (
                    f"seed={100 * seed}",
                    *how,
                    f"train={{epochs: {epochs}, batch_size: 32, last_batch: drop}}",
                    "optimizer={name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5e-3}",
                    f"schedule={{base_batch: 32, {decay}}}",
                )
                train(ROOT / "configs/digits-codistill.yaml", run_dir, *settings)
                part = run_dir / "replica_0" if name == "codistilled" else run_dir
                trained.append(fmean(line["loss"] for line in lines_of(part, "train")[-5:]))
                found.append(validations(part).final)
            print(
                f"decay  {name:11} weight decay {course:8}: training loss {over_seeds(trained)}, "
                f"validation loss {over_seeds(found)}"
            )


def print_churn(what: str, runs: Sequence[Path]) -> None:
    """Print how far each run is from the next one: their copies 0, and their ensembles."""
    compared = [evaluate(*pair)["churn"] for pair in zip(runs[::2], runs[1::2], strict=True)]
    for between in ("replica_0", "ensemble"):
        apart = [own for each in compared for own in each if own["between"] == between]
        differences = over_seeds([each["mean_abs_difference"] for each in apart])
        labels = over_seeds([each["changed_labels"] for each in apart])
        print(f"{what} churn of {between:9} mean difference {differences}; changed labels {labels}")


EXPERIMENTS = {
    "text": text,
    "scarce": scarce,
    "long": long,
    "transfer": transfer,
    "noisy": noisy,
    "churn": churn,
    "intervals": intervals,
    "overshoot": overshoot,
    "weight_decay": weight_decay,
}


def even(text: str) -> int:
    """Read a number of seeds: they are compared in pairs, and a spread takes two of these."""
    number = int(text)
    if number < 4 or number % 2:
        raise argparse.ArgumentTypeError(f"{text} is not an even number of at least 4")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.codistillation", description=__doc__)
    parser.add_argument("names", nargs="*", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/experiments")
    parser.add_argument("--seeds", type=even, default=4, help="an even number of at least 4")
    given = parser.parse_args()
    for name in given.names:
        EXPERIMENTS[name](given.folder, given.seeds)


if __name__ == "__main__":
    main()
