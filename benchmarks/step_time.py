"""The time of a training step, against other trainers and between dist_train's own settings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, environment, memory_mb, script, used
from benchmarks.turns import Contestant, Stage

CONFIG = str(ROOT / "benchmarks" / "contestants" / "dist_train.yaml")
# A turn holds a whole number of dist_train's logging intervals, so that each turn pays its share.
STEPS = {"resnet": 10, "mlp": 10, "tiny": 200}
WARMUP = 20
LAUNCHES = 4

# dist_train's launcher has malloc ask the kernel for pages of 2 MB: far fewer page faults.
HUGE_PAGES = ["env", "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"]
SMALL_PAGES = ["env", "GLIBC_TUNABLES=glibc.malloc.hugetlb=0"]
VARIANTS = {
    "bucket_1mb": ["parallel.bucket_mb=1"],
    "bucket_100mb": ["parallel.bucket_mb=100"],
    "bf16": ["parallel.compression=bf16"],
    # One bucket for all: over Gloo torch's PowerSGD comes to a standstill with more.
    "powersgd": ["parallel.compression=powersgd", "parallel.powersgd_start=2", "parallel.bucket_mb=100"],
}


def torchrun(contestant: str, workload: str, *arguments: str, name: str | None = None) -> Contestant:
    module = f"benchmarks.contestants.{contestant}"
    command = [script("torchrun"), "--standalone", "--nproc-per-node", "2", "-m", module]
    return Contestant(name or contestant, [*command, workload, *arguments])


def dist_train(workload: str, folder: Path, *overrides: str, name: str = "dist_train") -> Contestant:
    command = [script("dist-train"), "run", CONFIG, f"task_options.workload={workload}", *overrides]
    return Contestant(name, [*command, "--run-dir", str(folder / f"run-{name}")])


def trainers(workload: str, folder: Path) -> list[Contestant]:
    """All trainers, and the loop by hand once more with torch's fused optimizer, as dist_train has it."""
    return [
        torchrun("by_hand", workload),
        torchrun("by_hand", workload, "--fused", name="by_hand_fused"),
        torchrun("accelerate", workload),
        torchrun("lightning", workload),
        dist_train(workload, folder),
    ]


def variants(workload: str, folder: Path) -> list[Contestant]:
    """dist_train's settings of the exchange of gradients and of memory, beside the best loop by hand."""
    by_hand = torchrun("by_hand", workload, "--fused", name="by_hand_fused")
    own = dist_train(workload, folder)
    paged = [
        Contestant("by_hand_huge_pages", [*HUGE_PAGES, *by_hand.command]),
        Contestant("small_pages", [*SMALL_PAGES, *dist_train(workload, folder, name="small_pages").command]),
    ]
    others = [dist_train(workload, folder, *settings, name=name) for name, settings in VARIANTS.items()]
    return [by_hand, own, *paged, *others]


def measure(workload: str, rounds: int, settings: bool = False) -> dict[str, Any]:
    """Return, for each contestant, one number for each round or worker; see ``_launch`` for which.

    The rounds are spread over several launches: where a process happens to get its memory decides how
    often it asks the kernel for more, and so a part of its speed.
    """
    result: dict[str, dict[str, list[Any]]] = {}
    for _ in range(min(LAUNCHES, rounds)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            contestants = (variants if settings else trainers)(workload, folder)
            with Stage(contestants, folder, environment()) as stage:
                for measure, by_name in _launch(stage, max(1, rounds // LAUNCHES), STEPS[workload]).items():
                    for name, numbers in by_name.items():
                        result.setdefault(measure, {}).setdefault(name, []).extend(numbers)
    return result


def _launch(stage: Stage, rounds: int, steps: int) -> dict[str, dict[str, list[Any]]]:
    """Measure one launch: seconds per step for each round, and for each worker what it used in a step."""
    stage.rounds(0, 0, WARMUP)
    before = {pid: used(pid) for job in stage.jobs for pid in job.pids}
    result: dict[str, dict[str, list[Any]]] = {"seconds_per_step": dict(stage.rounds(rounds, steps, 0))}
    made = rounds * steps
    for job in stage.jobs:
        name, after = job.contestant.name, {pid: used(pid) for pid in job.pids}
        per_worker = {
            "processor_s_per_step": [(after[p].processor_s - before[p].processor_s) / made for p in after],
            "page_faults_per_step": [(after[p].page_faults - before[p].page_faults) / made for p in after],
            "memory_mb": [memory_mb(pid) for pid in after],
        }
        for measure, numbers in per_worker.items():
            result.setdefault(measure, {})[name] = numbers
    return result
