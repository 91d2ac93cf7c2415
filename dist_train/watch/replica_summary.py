"""What a run of several replicas comes to, from what each of them has written down."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dist_train.config.schema import Config
from dist_train.errors import DONE, INTERRUPTED
from dist_train.layout import METRICS, SUMMARY, WEIGHTS, replica_folder
from dist_train.watch.aftermath import readable
from dist_train.watch.atomic import replacing
from dist_train.watch.figures import metric
from dist_train.watch.records import to_json
from dist_train.watch.summary import Summary, read_summary, write_summary

# What the summary says of each replica.
OF_EACH = (
    "status",
    "steps",
    "samples",
    "wall_s",
    "samples_per_s",
    "restarts",
    "val",
    "best",
    "model",
    "error",
)


Line = dict[str, Any]
# A replica's lines are in the order of steps but for validations, which may come after later steps.
AHEAD = 1000


def sum_up(config: Config, directory: Path, status: int, wall_s: float, restarts: int) -> list[str]:
    """Write the run's summary and its metrics: those of all replicas, in the order of steps.

    What the run delivers is fixed beforehand: replica 0, never the best of them (Anil et al. 2018 take one
    copy without looking). Returns a line for a person about each of them.
    """
    replicas = [_summary_of(directory, number) for number in range(config.parallel.replicas)]
    first = replicas[0]
    weights = directory / replica_folder(0) / WEIGHTS
    summary = Summary(
        status="done" if status == DONE else "interrupted" if status == INTERRUPTED else "failed",
        mode=config.parallel.mode,
        workers=int(config.parallel.workers),
        replicas=config.parallel.replicas,
        steps=int(first.get("steps", 0)),
        samples=sum(int(each.get("samples", 0)) for each in replicas),
        wall_s=round(wall_s, 3),
        samples_per_s=round(sum(float(each.get("samples_per_s", 0)) for each in replicas), 3),
        restarts=restarts + sum(int(each.get("restarts", 0)) for each in replicas),
        val=first.get("val", {}),
        run_dir=str(directory),
        model=str(weights) if weights.exists() else None,
        error=next((each["error"] for each in replicas if each.get("error")), None),
    )
    told = [{"replica": n} | {k: s[k] for k in OF_EACH if k in s} for n, s in enumerate(replicas)]
    write_summary(directory / SUMMARY, summary.record() | {"replicas": told})
    _gather_metrics(config, directory)
    return [_line_of(each) for each in told]


def _line_of(told: dict[str, Any]) -> str:
    """Say in a line how a replica has ended."""
    measures = "  ".join(" ".join(metric(name, value)) for name, value in told.get("val", {}).items())
    steps = f", step {told['steps']:,}" if "steps" in told else ""
    return f"replica {told['replica']}: {told['status']}{steps}{'  ' if measures else ''}{measures}"


def _summary_of(directory: Path, number: int) -> dict[str, Any]:
    found = read_summary(directory / replica_folder(number) / SUMMARY)
    return found or {"status": "failed", "error": f"replica {number} left no summary"}


def _gather_metrics(config: Config, directory: Path) -> None:
    """Merge the lines of all replicas, of which there may be millions: few are held at a time."""
    each = (
        in_order(readable(directory / replica_folder(number) / METRICS))
        for number in range(config.parallel.replicas)
    )
    with replacing(directory / METRICS) as file:
        for line in heapq.merge(*each, key=_place):
            file.write(to_json(line).encode() + b"\n")


def in_order(lines: Iterable[Line], ahead: int = AHEAD) -> Iterator[Line]:
    """Yield lines in the order of steps; each may come up to ``ahead`` lines too early."""
    held: list[tuple[tuple[Any, ...], int, Line]] = []
    for number, line in enumerate(lines):
        heapq.heappush(held, (_place(line), number, line))
        if len(held) > ahead:
            yield heapq.heappop(held)[-1]
    while held:
        yield heapq.heappop(held)[-1]


def _place(line: Line) -> tuple[Any, ...]:
    return line.get("step", 0), line.get("kind", ""), line.get("replica", 0)
