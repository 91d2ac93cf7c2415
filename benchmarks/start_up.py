"""Seconds from the command to the end of the first step, and to the help text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import server_speed
from benchmarks.machine import environment, script
from benchmarks.step_time import dist_train, torchrun
from benchmarks.turns import START_S, Contestant, Stage

# The built-in twin of the MLP: synthetic data of the same size, and the same layers.
BUILT_IN = """
name: benchmark
task: synthetic
task_options: {shape: [784], classes: 10, samples: 4096}
model: {name: mlp, hidden: [2800, 2800]}
parallel: {workers: 2, device: cpu}
train: {steps: 1, batch_size: 32}
optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
logging: {every_steps: 1}
"""


def first_step(contestant: Contestant, folder: Path) -> float:
    """Return the seconds until all workers have made one step."""
    start = time.perf_counter()
    with Stage([contestant], folder, environment()) as stage:
        stage.jobs[0].turn(1)
        return time.perf_counter() - start


def first_step_built_in(folder: Path) -> float:
    """The same for a built-in task, whose first step is a line in metrics.jsonl."""
    config, run_dir = folder / "config.yaml", folder / "run"
    config.write_text(BUILT_IN)
    start = time.perf_counter()
    command = [script("dist-train"), "run", str(config), "--run-dir", str(run_dir)]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seconds = _wait_for_line(run_dir / "metrics.jsonl", process) - start
    if process.wait() != 0:
        raise RuntimeError(f"dist-train ended with status {process.returncode}: {' '.join(command)}")
    return seconds


def _wait_for_line(path: Path, process: subprocess.Popen[bytes]) -> float:
    deadline = time.perf_counter() + START_S
    while time.perf_counter() < deadline and process.poll() is None:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            if text := path.read_text():
                json.loads(text.splitlines()[0])
                return time.perf_counter()
        time.sleep(0.005)
    raise RuntimeError("dist-train ended without a first step")


def cost_of(*command: str) -> tuple[float, float]:
    """Run a command; return the seconds that went by and those that a processor spent on it."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, env=environment(), stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - start, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, spent


def measure(rounds: int) -> dict[str, Any]:
    """Return the seconds to the first step, and of ``--help`` beside a bare Python, round for round."""

    def own_task(folder: Path) -> float:
        return first_step(dist_train("mlp", folder), folder)

    def by_hand(folder: Path) -> float:
        return first_step(torchrun("by_hand", "mlp"), folder)

    starts: dict[str, Callable[[Path], float]] = {
        "by_hand": by_hand,
        "dist_train": own_task,
        "dist_train_built_in": first_step_built_in,
    }
    first: dict[str, list[float]] = {name: [] for name in starts}
    quick = {"python": [sys.executable, "-c", "pass"], "help": [script("dist-train"), "--help"]}
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in quick}
    for number in range(rounds + 1):
        for name, start in starts.items():
            with tempfile.TemporaryDirectory() as temporary:
                seconds = start(Path(temporary))
            # The first round fills the disk's cache and does not count.
            if number:
                first[name].append(seconds)
        for name, command in quick.items():
            costs[name].append(cost_of(*command))
    wall = {name: [seconds for seconds, _ in pairs] for name, pairs in costs.items()}
    processor = {f"{name}, processor": [spent for _, spent in pairs] for name, pairs in costs.items()}
    return {"first_step": first, "quick": wall | processor}


def measure_server(rounds: int) -> dict[str, Any]:
    """Return the seconds until both workers' first gradients are applied, round for round."""

    def sync(folder: Path) -> Contestant:
        return dist_train("mlp", folder, name="sync")

    contestants: list[Callable[[Path], Contestant]] = [
        lambda folder: server_speed.asynchronous("mlp", folder),
        lambda folder: server_speed.ray_actors("mlp", folder),
        sync,
    ]
    first: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for make in contestants:
            with tempfile.TemporaryDirectory() as temporary:
                contestant = make(Path(temporary))
                seconds = first_step(contestant, Path(temporary))
            # The first round fills the disk's cache and does not count.
            if number:
                first.setdefault(contestant.name, []).append(seconds)
    return {"server_first_update": first}
