"""A whole run of dist_train, and the speed it came to once it was under way."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import environment
from benchmarks.step_time import dist_train


def samples_per_s(workload: str, *overrides: str) -> float:
    """Train ``workload`` with the configuration's ``overrides``; return the steady speed."""
    return steady_speed(metrics_of(workload, *overrides))


def metrics_of(workload: str, *overrides: str, part: str = "") -> list[dict[str, Any]]:
    """Train ``workload`` with the configuration's ``overrides``; return the lines of its metrics.

    ``part`` is the folder of one of several replicas. Raises RuntimeError with the end of its output when the
    run fails.
    """
    with tempfile.TemporaryDirectory() as temporary:
        run = dist_train(workload, Path(temporary), *overrides)
        ended = subprocess.run(
            run.command,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise RuntimeError(f"dist-train {' '.join(overrides)} failed:\n{ended.stdout[-2000:]}")
        file = Path(temporary) / "run-dist_train" / part / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]


def steady_speed(lines: Iterable[Mapping[str, Any]]) -> float:
    """Return the samples per second between the training lines of a run, its first quarter left out."""
    training = [line for line in lines if line["kind"] == "train"]
    first, last = training[len(training) // 4], training[-1]
    if first is last:
        raise ValueError(
            f"a speed needs two training lines after the first quarter; there are {len(training)}"
        )
    return float((last["samples"] - first["samples"]) / (last["wall_s"] - first["wall_s"]))


def alternating(contestants: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Run each contestant (a name, and overrides of the tiny workload's configuration) once in every round.

    Return their samples per second, round for round.
    """
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, overrides in contestants.items():
            speeds[name].append(samples_per_s("tiny", *overrides))
    return speeds
