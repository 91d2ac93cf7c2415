"""The memory of a parameter-server run, beside what it cannot do without.

What the parameters cost is the difference between two runs: with ten million of them, and with next to none.
Shared pages are divided among those who map them (pss), so that the processes' figures add up.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import environment, memory_mb
from benchmarks.server_speed import asynchronous
from benchmarks.turns import Job, Stage
from benchmarks.workload import make_model

# Updates after which everything has been used once, a snapshot included.
STEPS = 40
LARGE, SMALL = "mlp", "tiny"
# How often each process needs memory of the parameters' size. A worker: the version that it computes on,
# which lies with the shard, the gradient, and the gradient on its way. A shard: the newest version, the one
# in the making, the momentum. The coordinator: what a killed shard is restored from, parameters and momentum.
NEEDS = {"worker": 3, "shard": 3, "coordinator": 2}


def measure(rounds: int) -> dict[str, Any]:
    """Return what each process holds, in MB, by workload, role and round."""
    held: dict[str, dict[str, list[float]]] = {LARGE: {}, SMALL: {}}
    for _ in range(rounds):
        for workload, by_role in held.items():
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                with Stage([asynchronous(workload, folder)], folder, environment()) as stage:
                    stage.rounds(1, STEPS, 0)
                    for role, megabytes in _held(stage.jobs[0]):
                        by_role.setdefault(role, []).append(megabytes)
    parameters = sum(parameter.numel() for parameter in make_model(LARGE).parameters())
    return {"server_memory_mb": held, "parameters_mb": 4 * parameters / 2**20}


def _held(job: Job) -> list[tuple[str, float]]:
    titles = {pid: " ".join(psutil.Process(pid).cmdline()) for pid in job.processes()}
    found = {pid: role for pid, title in titles.items() if (role := role_of(title)) is not None}
    return [(role, memory_mb(pid)["pss"]) for pid, role in found.items()]


def role_of(title: str) -> str | None:
    """Read from a process's title what it is in the run; None for what belongs to Ray."""
    found = re.match(r"ray::\w*?(worker|shard|coordinator)", title)
    return found[1] if found else None


def share(result: Mapping[str, Any]) -> float:
    """Return what all processes together hold for the parameters, as a multiple of what must exist."""
    held = result["server_memory_mb"]
    own = sum(sum(held[LARGE][role]) - sum(held[SMALL][role]) for role in NEEDS)
    needed = sum(times * len(held[LARGE][role]) for role, times in NEEDS.items())
    return float(own / (needed * result["parameters_mb"]))
