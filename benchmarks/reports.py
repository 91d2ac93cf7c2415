"""How long a report takes on a run of a million lines of metrics, and what memory and page it comes to.

The lines are as runs write them, with numbers of their own: two workers that meet in every step, or two that
share a parameter server, whose updates are a million lines of events too.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import environment

LINES = 1_000_000
PHASES = ("data", "forward", "backward", "communication", "update")
# Distinct lines of which the rest are made: writing a million by json takes longer than reading them.
POLL_S = 0.05


def measure(rounds: int) -> dict[str, Any]:
    """Return seconds, peak memory in MB and the page's size in MB, round for round, by kind of run."""
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("sync", "async"):
            run = Path(temporary) / kind
            write_run(run, kind, LINES)
            measured = [_report(run) for _ in range(rounds)]
            found[kind] = {name: [each[name] for each in measured] for name in measured[0]}
    return {"lines": LINES, "report": found}


def write_run(directory: Path, kind: str, lines: int) -> None:
    """Write the records of a run with ``lines`` training lines, one every 10 steps."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(f"name: {kind}\nparallel: {{mode: {kind}, workers: 2}}\n")
    draw = random.Random(0)
    with (directory / "metrics.jsonl").open("w") as file:
        for number in range(1, lines + 1):
            file.write(json.dumps(_line(kind, number, draw)) + "\n")
    with (directory / "events.jsonl").open("w") as file:
        file.writelines(json.dumps(event) + "\n" for event in _events(kind, lines))


def _line(kind: str, number: int, draw: random.Random) -> dict[str, Any]:
    line: dict[str, Any] = {
        "kind": "train",
        "step": 10 * number,
        "samples": 640 * number,
        "epoch": 640 * number / 50_000,
        "wall_s": 0.5 * number,
        "loss": 2.0 / number**0.3 + 0.1 * draw.random(),
        "lr": 0.1,
        "samples_per_s": 1200 + 100 * draw.random(),
        "samples_per_s_per_worker": 600 + 50 * draw.random(),
        "data_wait": 0.02 * draw.random(),
        "times": _times(draw),
        "memory_mb": 340.0,
        "slowest_rank": 1,
        "replica": 0,
    }
    if kind == "sync":
        return line | {"worker_times": [_times(draw), _times(draw)]}
    figures = {
        "samples_per_s": 620.0,
        "staleness": 1.0,
        "dropped": number // 50,
        "waiting": 0.1 * draw.random(),
    }
    waits = {f"waiting_{cause}": draw.random() for cause in ("quorum", "server", "bound", "work", "data")}
    counts = {"computed": 10 * number, "applied": 10 * number, "dropped": 0, "refused": 0, "requeued": 0}
    workers = [{"name": name, **figures} for name in "01"]
    return line | {"workers": workers, "staleness": 1.0, "staleness_p99": 2} | counts | waits


def _times(draw: random.Random) -> dict[str, float]:
    return {phase: 0.02 * draw.random() for phase in PHASES}


def _events(kind: str, lines: int) -> Iterator[dict[str, Any]]:
    yield {"time": 1.0, "event": "start", "step": 0, "samples": 0, "workers": 2}
    gradient = {
        "member": 0,
        "incarnation": 0,
        "sequence": 1,
        "read": [0, 0],
        "lease": [0, 0, 32],
        "loss": 0.1,
    }
    for number in range(1, lines + 1) if kind == "async" else ():
        update = {"event": "update", "step": number, "era": 0, "rate": 0.1, "momentum": None, "samples": 32}
        yield {"time": 1.0 + 0.5 * number, **update, "gradients": [{**gradient, "staleness": 1}]}


def _report(run: Path) -> dict[str, float]:
    start = time.perf_counter()
    command = [sys.executable, "-m", "dist_train", "report", str(run)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL) as process:
        watched, peak, spent = psutil.Process(process.pid), 0, 0.0
        while process.poll() is None:
            try:
                everybody = [watched, *watched.children(recursive=True)]
                peak = max(peak, sum(each.memory_info().rss for each in everybody))
                # Of processes that have ended as well.
                spent = sum(watched.cpu_times()[:4])
            except psutil.NoSuchProcess:
                break
            time.sleep(POLL_S)
    if process.returncode:
        raise RuntimeError(f"the report of {run.name} failed with exit status {process.returncode}")
    page = run / "report" / "report.html"
    seconds = time.perf_counter() - start
    megabyte = 2**20
    return {
        "seconds": seconds,
        "processor_s": spent,
        "memory_mb": peak / megabyte,
        "page_mb": page.stat().st_size / megabyte,
    }
