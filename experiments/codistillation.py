"""Anil et al. 2018: fewer updates to the same loss with disjoint data, and less churn between retrains.

python -m experiments.codistillation [text] [scarce] [transfer] [churn] [--folder DIR] [--seeds 4]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.runs import ROOT, Curve, evaluate, over_seeds, train, validations

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


def scarce(folder: Path, seeds: int) -> None:
    """The same where text is scarce: 200,000 bytes, so that each sample is seen again and again."""
    options = "task_options={context: 64, validation_share: 0.1, max_bytes: 200000}"
    text(folder / "scarce", seeds, (options,))


def text(folder: Path, seeds: int, further: Sequence[str] = ()) -> None:
    """Print after how many updates each way reaches what one replica alone comes to."""
    curves: dict[str, list[Curve]] = {name: [] for name in HOW}
    for seed in range(seeds):
        for name, how in HOW.items():
            run_dir = folder / f"text-{name}-{100 * seed}"
            train(ROOT / "configs/text-codistill.yaml", run_dir, f"seed={100 * seed}", how, *TEXT, *further)
            curves[name].append(validations(run_dir / "replica_0"))
    alone = curves["apart"]
    for name, found in curves.items():
        losses = over_seeds([curve.final for curve in found])
        shares = [
            own.steps_to(single.final) / single.steps[-1] for own, single in zip(found, alone, strict=True)
        ]
        told = ", ".join(f"{share:.2f}" for share in shares)
        print(f"text  {name:9} final validation loss {losses}; share of the updates to reach it: {told}")
    runs = {name: [folder / f"text-{name}-{100 * seed}" for seed in range(seeds)] for name in HOW}
    ensembles = [evaluate(run_dir)["runs"][0]["ensemble"]["val"]["loss"] for run_dir in runs["apart"]]
    print(f"text  ensemble of two, final validation loss {over_seeds(ensembles)}")
    for name, directories in runs.items():
        print_churn(f"text  {name}", directories)


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


def churn(folder: Path, seeds: int) -> None:
    """Print how far two retrains are apart: of one model, of an ensemble, of a codistilled copy."""
    short = ("train.epochs=20", "schedule={base_batch: 32, decay: {kind: cosine}}")
    ways = {"apart": "codistill=null", "codistilled": "codistill={burn_in: 45, interval: 10, data: same}"}
    runs: dict[str, list[Path]] = {name: [] for name in ways}
    for seed in range(2 * seeds):
        for name, how in ways.items():
            run_dir = folder / f"churn-{name}-{100 * seed}"
            settings = (f"seed={100 * seed}", how, *short, "model={name: mlp, hidden: [64]}")
            runs[name].append(
                train(ROOT / "configs/digits-codistill.yaml", run_dir, *settings, "optimizer.lr=0.05")
            )
    for name, found in runs.items():
        print_churn(f"digits {name}", found)


def print_churn(what: str, runs: Sequence[Path]) -> None:
    """Print how far each run is from the next one: their copies 0, and their ensembles."""
    compared = [evaluate(*pair)["churn"] for pair in zip(runs[::2], runs[1::2], strict=True)]
    for between in ("replica_0", "ensemble"):
        apart = [own for each in compared for own in each if own["between"] == between]
        differences = over_seeds([each["mean_abs_difference"] for each in apart])
        labels = over_seeds([each["changed_labels"] for each in apart])
        print(f"{what} churn of {between:9} mean difference {differences}; changed labels {labels}")


EXPERIMENTS = {"text": text, "scarce": scarce, "transfer": transfer, "churn": churn}


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
