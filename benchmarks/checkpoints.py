"""What a checkpoint costs the training that it interrupts."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import environment
from benchmarks.step_time import WARMUP, dist_train
from benchmarks.turns import Stage

EVERY = 30


@dataclass(frozen=True)
class Step:
    """One step of training: when it began (time of day) and the seconds it took."""

    number: int
    start: float
    seconds: float


def measure(rounds: int) -> dict[str, Any]:
    """Train the MLP alone with a checkpoint every 30 steps; ``rounds`` is the number of checkpoints."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        contestant = dist_train("mlp", folder, f"checkpoint.every_steps={EVERY}")
        steps = []
        with Stage([contestant], folder, environment()) as stage:
            for number in range(1, EVERY * (rounds + 1)):
                start = time.time()
                steps.append(Step(number, start, stage.jobs[0].turn(1)))
        events = [json.loads(line) for line in (folder / "run-dist_train" / "events.jsonl").open()]
    return costs(steps, [event for event in events if event["event"] == "checkpoint"])


def costs(steps: Sequence[Step], saves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare steps by what the saver did meanwhile.

    ``saves`` are the events of checkpoints, written when each was committed. A step is ``saving`` when it
    ended with the copy to memory, ``in_flight`` when the disk worked during it, else ``quiet``. The first
    save makes the buffers that the later ones use again, so it counts on its own.
    """
    kinds: dict[str, list[float]] = {"quiet": [], "in_flight": [], "saving": [], "saving_first": []}
    copied_after = sorted(int(save["step"]) for save in saves)
    for step in steps:
        if step.number <= WARMUP:
            continue
        end = step.start + step.seconds
        busy = any(step.start < s["time"] and s["time"] - s["seconds"] < end for s in saves)
        if step.number in copied_after:
            kind = "saving_first" if step.number == copied_after[0] else "saving"
        else:
            kind = "in_flight" if busy else "quiet"
        kinds[kind].append(step.seconds)
    quiet = median(kinds["quiet"])
    return {
        "every": EVERY,
        "seconds": kinds,
        "stall_in_steps": [save["stall_s"] / quiet for save in saves],
        "writing_in_steps": [save["seconds"] / quiet for save in saves],
    }
