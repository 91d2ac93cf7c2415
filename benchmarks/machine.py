"""The machine and the programs that were measured."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "accelerate", "lightning")


def describe() -> dict[str, str]:
    """Name the processor, the number of cores, the versions and the day."""
    facts = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts | {"date": datetime.now(UTC).date().isoformat()}


def environment() -> dict[str, str]:
    """What every contestant runs with: one thread for each worker, and this repository importable."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def script(name: str) -> str:
    """Return the path of a console script beside this interpreter."""
    return str(Path(sys.executable).parent / name)


def memory_mb(pid: int) -> dict[str, float]:
    """Return what process ``pid`` holds: at its peak (resident), and now with shared pages divided (pss)."""
    process = Path("/proc") / str(pid)
    status = (process / "status").read_text()
    rollup = (process / "smaps_rollup").read_text()
    return {"peak_resident": _kilobytes(status, "VmHWM:") / 1024, "pss": _kilobytes(rollup, "Pss:") / 1024}


@dataclass(frozen=True)
class Used:
    """What a process has used so far: seconds of processors, and pages of memory it had to be given."""

    processor_s: float
    page_faults: int


def used(pid: int) -> Used:
    """Read what process ``pid`` has used. Other programs on the machine hardly change it."""
    # The fields after the program's name, which may itself hold blanks and brackets: proc(5).
    fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return Used(ticks / os.sysconf("SC_CLK_TCK"), int(fields[7]))


def _kilobytes(text: str, label: str) -> int:
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(label))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
