"""Runs of an experiment: started one after another, and what they came to."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Curve:
    """A run's validations: after ``steps`` updates the loss was ``losses``."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]

    @property
    def final(self) -> float:
        return self.losses[-1]

    def steps_to(self, loss: float) -> float:
        """Return the updates after which ``loss`` is reached, between validations by a straight line.

        Infinity if it never is.
        """
        before: tuple[int, float] | None = None
        for step, own in zip(self.steps, self.losses, strict=True):
            if own <= loss:
                if before is None:
                    return float(step)
                share = (before[1] - loss) / (before[1] - own)
                return before[0] + share * (step - before[0])
            before = step, own
        return math.inf


@dataclass(frozen=True)
class MeanAndSpread:
    """The mean of several seeds and the standard deviation between them."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.deviation:.2g}"


def over_seeds(numbers: Sequence[float]) -> MeanAndSpread:
    """Sum up one number for each seed, at least two."""
    return MeanAndSpread(statistics.fmean(numbers), statistics.stdev(numbers))


def train(config: Path, run_dir: Path, *overrides: str) -> Path:
    """Train unless it is done already, and return the run directory; raises RuntimeError if it fails."""
    summary = run_dir / "summary.json"
    if summary.exists() and json.loads(summary.read_text())["status"] == "done":
        return run_dir
    _program("run", str(config), *overrides, "--run-dir", str(run_dir))
    return run_dir


def evaluate(*run_dirs: Path) -> dict[str, Any]:
    """Return what dist-train evaluate says of finished runs."""
    found: dict[str, Any] = json.loads(_program("evaluate", "--json", *map(str, run_dirs)))
    return found


def validations(run_dir: Path) -> Curve:
    """Return the validations of a run, or of one replica's directory."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["loss"] for line in lines if line["kind"] == "val"}
    return Curve(tuple(found), tuple(found.values()))


def _program(*words: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "dist_train", *words],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        raise RuntimeError(f"dist-train {' '.join(words)} failed:\n{(ended.stderr + ended.stdout)[-2000:]}")
    return ended.stdout
