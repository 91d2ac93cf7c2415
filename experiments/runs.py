"""Runs of an experiment: started one after another, and what they came to."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).parents[1]
# In a run's directory: what it was asked for.
ASKED = "experiment.json"


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


@dataclass(frozen=True)
class Run:
    """A run to be made: a configuration of configs/, by name, and what is different.

    ``may_fail`` says that a failure of it is an outcome, not an error.
    """

    config: str
    run_dir: Path
    overrides: tuple[str, ...]
    may_fail: bool = False


def train_all(runs: Iterable[Run], side_by_side: bool = False) -> None:
    """Make all runs that are not done already; raises RuntimeError if one fails, after all others.

    ``side_by_side`` gives each a core of its own, for runs of one worker of which no time is measured.
    """
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def settle() -> None:
        # Of this thread alone, and of the processes that it starts.
        os.sched_setaffinity(0, {cores.get()})

    failed: list[str] = []
    lanes, begin = (cores.qsize(), settle) if side_by_side else (1, None)
    with ThreadPoolExecutor(lanes, initializer=begin) as pool:
        for error in pool.map(_train, runs):
            failed += [] if error is None else [error]
    if failed:
        raise RuntimeError("\n".join(failed))


def _train(run: Run) -> str | None:
    """Make a run and say so; return why it failed, None where that is an outcome like any other."""
    try:
        train(ROOT / "configs" / f"{run.config}.yaml", run.run_dir, *run.overrides)
    except RuntimeError as error:
        print(f"  {run.run_dir.name}: failed", file=sys.stderr, flush=True)
        return None if run.may_fail else str(error)
    print(f"  {run.run_dir.name}", file=sys.stderr, flush=True)
    return None


def train(config: Path, run_dir: Path, *overrides: str) -> Path:
    """Train unless it is done already, and return the run directory; raises RuntimeError if it fails.

    A run that was broken off, or made with other settings or another program, is made anew.
    """
    asked, note = json.dumps([config.read_text(), overrides, _program_hash()]), run_dir / ASKED
    if note.exists() and note.read_text() == asked and is_done(run_dir):
        return run_dir
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    note.write_text(asked)
    _program("run", str(config), *overrides, "--run-dir", str(run_dir))
    return run_dir


def is_done(run_dir: Path) -> bool:
    """Say whether a run came to its end."""
    return (run_dir / "summary.json").exists() and summary(run_dir)["status"] == "done"


@cache
def _program_hash() -> str:
    """Return a hash of the program's source."""
    files = sorted((ROOT / "dist_train").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def evaluate(*run_dirs: Path, checkpoints: Sequence[int] = ()) -> dict[str, Any]:
    """Return what dist-train evaluate says of finished runs, or of checkpoints of theirs."""
    steps = ["--checkpoints", ",".join(map(str, checkpoints))] if checkpoints else []
    found: dict[str, Any] = json.loads(_program("evaluate", "--json", *steps, *map(str, run_dirs)))
    return found


def validations(run_dir: Path) -> Curve:
    """Return the validations of a run, or of one replica's directory."""
    found = {line["step"]: line["loss"] for line in lines_of(run_dir, "val")}
    return Curve(tuple(found), tuple(found.values()))


def lines_of(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Return a run's metrics of one kind, train or val."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def summary(run_dir: Path) -> dict[str, Any]:
    """Return what a finished run came to."""
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def command(name: str, document: str | None, make: Callable[[Path, range], None]) -> None:
    """Be the command line of an experiment: a folder for its runs, and how many seeds, at least two."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=document)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/experiments" / name)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error(f"--seeds {given.seeds}: a spread needs at least 2")
    make(given.folder, range(given.seeds))


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
