"""Measure: ``python -m benchmarks.run [NAMES] [--rounds N] [--output FILE.json]``.

Prints medians with their quartiles and the 95% confidence interval of the median, and writes every
single measurement to the output file.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import (
    checkpoints,
    codistillation,
    machine,
    memory,
    reports,
    scaling,
    server_speed,
    start_up,
    step_time,
    stragglers,
)
from benchmarks.ratios import Spread, differences, ratios, scaled, speeds, spread


def measure_loader(rounds: int) -> dict[str, Any]:
    from benchmarks import loader

    return loader.measure(rounds)


BENCHMARKS: dict[str, tuple[Callable[[int], dict[str, Any]], int]] = {
    "resnet": (lambda rounds: step_time.measure("resnet", rounds), 20),
    "mlp": (lambda rounds: step_time.measure("mlp", rounds), 20),
    "tiny": (lambda rounds: step_time.measure("tiny", rounds), 30),
    "mlp_variants": (lambda rounds: step_time.measure("mlp", rounds, settings=True), 20),
    "resnet_variants": (lambda rounds: step_time.measure("resnet", rounds, settings=True), 15),
    "start_up": (start_up.measure, 9),
    "checkpoints": (checkpoints.measure, 12),
    "loader": (measure_loader, 12),
    "server": (lambda rounds: server_speed.measure("mlp", rounds, parts=True), 24),
    "server_100k": (lambda rounds: server_speed.measure("mlp_100k", rounds), 12),
    "server_1m": (lambda rounds: server_speed.measure("mlp_1m", rounds), 12),
    "server_50m": (lambda rounds: server_speed.measure("mlp_50m", rounds), 12),
    "straggler": (stragglers.one_slow, 1),
    "random_delays": (stragglers.random_delays, 1),
    "scaling": (scaling.measure, 1),
    "server_start_up": (start_up.measure_server, 3),
    "memory": (memory.measure, 2),
    "codistilled": (lambda rounds: codistillation.measure("resnet", rounds), 8),
    "codistilled_mlp": (lambda rounds: codistillation.measure("mlp", rounds), 8),
    "report": (reports.measure, 3),
}


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that sum up one benchmark's measurements."""
    if "seconds_per_step" in result:
        rounds = result["seconds_per_step"]
        for baseline in [name for name in ("by_hand", "by_hand_fused") if name in rounds]:
            yield from _table(f"time of a step / {baseline}", ratios(rounds, baseline))
            processor = ratios(result["processor_s_per_step"], baseline)
            yield from _table(f"processor time of a step / {baseline}", processor)
        extra = differences(rounds, "by_hand_fused")
        yield from _table("ms per step - by_hand_fused", {n: scaled(s, 1000) for n, s in extra.items()})
        for name, workers in result["memory_mb"].items():
            peak, pss = (median(w[key] for w in workers) for key in ("peak_resident", "pss"))
            faults = median(result["page_faults_per_step"][name])
            figures = f"{peak:.0f} MB at its peak, {pss:.0f} MB proportional, {faults:.0f} page faults a step"
            yield f"  a worker of {name}: {figures}"
    if "first_step" in result:
        yield from _table("seconds to the first step - by_hand", differences(result["first_step"], "by_hand"))
        quick = {name: spread(seconds) for name, seconds in result["quick"].items()}
        yield from _table("seconds", quick)
    if "stall_in_steps" in result:
        quiet = median(result["seconds"]["quiet"])
        kinds = {kind: [s / quiet for s in seconds] for kind, seconds in result["seconds"].items() if seconds}
        yield from _table("time of a step / a quiet step", {k: spread(v) for k, v in kinds.items()})
        named = {"stall": result["stall_in_steps"], "writing": result["writing_in_steps"]}
        yield from _table("of a checkpoint, in steps", {k: spread(v) for k, v in named.items()})
    if "seconds_per_batch" in result:
        rounds = result["seconds_per_batch"]
        for loaders in sorted({name.rpartition("_")[2] for name in rounds}):
            pair = {name: rounds[name] for name in rounds if name.endswith(f"_{loaders}")}
            yield from _table(f"time of a batch / plain_{loaders}", ratios(pair, f"plain_{loaders}"))
    for kind, measured in result.get("report", {}).items():
        figures = {name: spread(numbers) for name, numbers in measured.items()}
        yield from _table(f"report of {result['lines']:,} lines, {kind}", figures)
    yield from report_server(result)
    yield from report_codistilled(result)


def report_server(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that sum up a measurement of the parameter server's modes."""
    if "server_seconds_per_step" in result:
        rounds = result["server_seconds_per_step"]
        for baseline in ("ray_actors", "ray_actors_large_pages", "sync", "floor"):
            yield from _table(f"speed / {baseline}", speeds(rounds, baseline))
        for title, kind in {
            "ms": "server_seconds_per_step",
            "processor ms": "server_processor_s_per_step",
        }.items():
            per_step = {name: scaled(spread(numbers), 1000) for name, numbers in result[kind].items()}
            yield from _table(f"{title} per step of two gradients", per_step)
    if "straggler_samples_per_s" in result:
        shares = stragglers.ideals(result["straggler_samples_per_s"])
        yield from _table("speed / the ideal", {name: spread(share) for name, share in shares.items()})
    if "seconds_per_update" in result:
        measured = result["seconds_per_update"]
        yield from _table("seconds of an update with b backups", {b: spread(s) for b, s in measured.items()})
        for prediction in ("order_statistic", "simulated"):
            figures = ", ".join(f"{b}: {seconds:.3f}" for b, seconds in result[prediction].items())
            yield f"  {prediction} {figures}"
    if "server_first_update" in result:
        firsts = {name: spread(seconds) for name, seconds in result["server_first_update"].items()}
        yield from _table("seconds to the first update", firsts)
    if "server_memory_mb" in result:
        for workload, held in result["server_memory_mb"].items():
            yield from _table(f"MB of a process, {workload}", {k: spread(v) for k, v in held.items()})
        yield f"  all processes hold for the parameters {memory.share(result):.2f} times what must exist"
    if "scaling_samples_per_s" in result:
        rates = result["scaling_samples_per_s"]
        yield from _table("samples per second", {name: spread(numbers) for name, numbers in rates.items()})


def report_codistilled(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that sum up what replicas pay for teaching one another."""
    if "codistilled_seconds_per_step" not in result:
        return
    rounds = result["codistilled_seconds_per_step"]
    for baseline in ("apart", "floor", "exchange_floor"):
        yield from _table(f"time of a step / {baseline}", ratios(rounds, baseline))
    held = {name: spread(numbers) for name, numbers in result["codistilled_memory_mb"].items()}
    yield from _table("MB of a worker, at its peak", held)


def _table(title: str, rows: Mapping[str, Spread]) -> Iterator[str]:
    yield f"{title:40} {'median':>8} {'quartiles':>15} {'median is in':>15} {'n':>4}"
    for name, row in rows.items():
        quartiles = f"{row.quartiles[0]:.3f}-{row.quartiles[1]:.3f}"
        interval = f"{row.interval[0]:.3f}-{row.interval[1]:.3f}"
        yield f"  {name:38} {row.median:8.3f} {quartiles:>15} {interval:>15} {row.count:4}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which to measure: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=int, help="how often the contestants alternate")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks.json"))
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    # A request to end must still send the contestants home.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results: dict[str, Any] = {"machine": machine.describe()}
    print("; ".join(f"{name} {value}" for name, value in results["machine"].items()))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    for name in given.names or BENCHMARKS:
        measure, rounds = BENCHMARKS[name]
        print(f"\n{name}", flush=True)
        results[name] = measure(given.rounds or rounds)
        print("\n".join(report(results[name])), flush=True)
        given.output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
