"""The speed of two workers: the parameter server, its rivals, and what the machine allows.

In a step each of the two workers computes one gradient, whatever the mode makes of it: as many steps per
second are as many samples per second in every mode, and in an asynchronous one twice as many updates.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import environment, used
from benchmarks.step_time import HUGE_PAGES, LAUNCHES, WARMUP, dist_train
from benchmarks.turns import Contestant, Job, Stage
from benchmarks.workload import LOG_EVERY

WORKERS = 2
STEPS = {"mlp_100k": 400, "mlp_1m": 100, "mlp": 20, "mlp_50m": 5}
# What the floor's program does for a gradient: everything, and each part without the others.
FLOORS: Mapping[str, Sequence[str]] = {
    "floor": ("compute", "gradient", "step", "read"),
    "compute": ("compute",),
    "gradient": ("gradient",),
    "step": ("step",),
    "read": ("read",),
}


def floor(workload: str, name: str = "floor") -> Contestant:
    """The program with no control; it asks malloc for large pages, as dist_train's workers do."""
    command = [sys.executable, "-m", "benchmarks.contestants.floor", workload, "--parts", *FLOORS[name]]
    return Contestant(name, [*HUGE_PAGES, *command])


def ray_actors(workload: str, folder: Path, large_pages: bool = False) -> Contestant:
    """Ray's example, its session in ``folder``; as it is, or with the large pages that dist_train asks for.

    Ray would lower its workers' priority, which counts wherever a core is shared.
    """
    name, pages = ("ray_actors_large_pages", HUGE_PAGES) if large_pages else ("ray_actors", ["env"])
    command = [sys.executable, "-m", "benchmarks.contestants.ray_actors", workload]
    return Contestant(name, [*pages, "RAY_worker_niceness=0", f"TMPDIR={folder}", *command])


def asynchronous(workload: str, folder: Path) -> Contestant:
    """The parameter server, with everything that is on by default, as the synchronous mode has it.

    It logs as often by the number of samples; its updates are half as large.
    """
    settings = ["parallel.mode=async", f"logging.every_steps={WORKERS * LOG_EVERY}"]
    return dist_train(workload, folder, *settings, name="async")


def contestants(workload: str, folder: Path, parts: bool) -> list[Contestant]:
    """The trainers and the floor; with ``parts``, also each part of the floor on its own."""
    own = [asynchronous(workload, folder), dist_train(workload, folder, name="sync")]
    floors = [floor(workload, name) for name in (FLOORS if parts else ["floor"])]
    rivals = [ray_actors(workload, folder, large_pages) for large_pages in (False, True)]
    return [*rivals, *own, *floors]


def measure(workload: str, rounds: int, parts: bool = False) -> dict[str, Any]:
    """Return by contestant and round the seconds of a step, and what all its processes used in it."""
    result: dict[str, dict[str, list[float]]] = {
        "server_seconds_per_step": {},
        "server_processor_s_per_step": {},
    }
    for _ in range(min(LAUNCHES, rounds)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            with Stage(contestants(workload, folder, parts), folder, environment()) as stage:
                for measured, by_name in _launch(stage, max(1, rounds // LAUNCHES), STEPS[workload]).items():
                    for name, numbers in by_name.items():
                        result[measured].setdefault(name, []).extend(numbers)
    return result


def _launch(stage: Stage, rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    stage.rounds(0, 0, max(WARMUP, steps))
    seconds: dict[str, list[float]] = {job.contestant.name: [] for job in stage.jobs}
    processor: dict[str, list[float]] = {job.contestant.name: [] for job in stage.jobs}
    for turn in range(rounds):
        first = turn % len(stage.jobs)
        for job in stage.jobs[first:] + stage.jobs[:first]:
            # Around its own turns alone: Ray's processes are busy in those of others too.
            before = _processor_s(job)
            seconds[job.contestant.name].append(job.turn(steps) / steps)
            processor[job.contestant.name].append((_processor_s(job) - before) / steps)
    return {"server_seconds_per_step": seconds, "server_processor_s_per_step": processor}


def _processor_s(job: Job) -> float:
    """Return what all processes of a job have used; those that ended in between are forgotten."""
    return sum(used(pid).processor_s for pid in job.processes())
