"""Directories of runs, written as runs write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

Record = dict[str, Any]
MakeRun = Callable[..., Path]

TIMES = {
    "data": 0.01,
    "forward": 0.02,
    "backward": 0.03,
    "communication": 0.02,
    "update": 0.01,
    "waiting": 0.0,
}


def train(step: int, wall_s: float, **further: Any) -> Record:
    """A training line of a single worker, 10 samples a step."""
    line = {"kind": "train", "step": step, "samples": 10 * step, "epoch": step / 100, "wall_s": wall_s}
    return {**line, "loss": 1.0, "lr": 0.1, "samples_per_s": 100.0, "times": TIMES, "replica": 0, **further}


def validation(step: int, wall_s: float, **further: Any) -> Record:
    line = {"kind": "val", "step": step, "samples": 10 * step, "epoch": step / 100, "wall_s": wall_s}
    return {**line, "loss": 0.5, "seconds": 0.25, "accuracy": 0.9, "replica": 0, **further}


def lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run directory of what is given, and nothing else."""

    def make(
        name: str = "run",
        metrics: Iterable[Record] = (),
        events: Iterable[Record] = (),
        config: str = "name: tiny\nparallel: {mode: sync, workers: 1}\n",
        summary: Record | None = None,
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text(config)
        (directory / "metrics.jsonl").write_text(lines(metrics))
        (directory / "events.jsonl").write_text(lines(events))
        if summary is not None:
            (directory / "summary.json").write_text(json.dumps(summary))
        return directory

    return make
