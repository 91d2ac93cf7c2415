"""What a codistilled step costs: beside replicas that know nothing of each other, on the same cores.

Two replicas of one worker each, side by side on two cores. The floor of an exchange of snapshots is one more
forward pass, without gradients; that of an exchange of predictions is the exchange itself.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import torch
from torch import nn

from benchmarks.runs import metrics_of, steady_speed
from benchmarks.workload import BATCH, loss_of, make_columns, make_model
from dist_train.runtime.line import Line
from dist_train.runtime.relay import RelayThread, Seat, Waits

STEPS = {"resnet": 150, "mlp": 100}
PAIR = ("parallel.workers=1", "parallel.replicas=2", "logging.every_steps=10")
CONTESTANTS = {
    "apart": PAIR,
    "snapshots": (*PAIR, "codistill={interval: 50, data: same}"),
    "predictions": (*PAIR, "codistill={exchange: prediction, data: same}"),
}


def measure(workload: str, rounds: int) -> dict[str, Any]:
    """Return, round for round, seconds of a step by contestant, the floor, and each worker's memory."""
    seconds: dict[str, list[float]] = {name: [] for name in (*CONTESTANTS, "floor", "exchange_floor")}
    memory: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, overrides in CONTESTANTS.items():
            speed, peak = _run(workload, *overrides, f"train.steps={STEPS[workload]}")
            seconds[name].append(BATCH / speed)
            memory[name].append(peak)
        alone = seconds["apart"][-1]
        seconds["floor"].append(alone * (1 + forward_share(workload)))
        seconds["exchange_floor"].append(alone + exchange_s())
    return {"codistilled_seconds_per_step": seconds, "codistilled_memory_mb": memory}


def _run(workload: str, *overrides: str) -> tuple[float, float]:
    """Train two replicas; return replica 0's steady samples per second, and its peak memory in MB."""
    lines = metrics_of(workload, *overrides, part="replica_0")
    return steady_speed(lines), max(line.get("memory_mb", 0.0) for line in lines)


def forward_share(workload: str, repeats: int = 15) -> float:
    """Return a forward pass without gradients as a share of a step; both alternate, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = make_model(workload)
        frozen = make_model(workload).eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
        batch = make_columns(workload, BATCH)
        shares = []
        for _ in range(repeats):
            start = time.perf_counter()
            _step(model, optimizer, batch)
            middle = time.perf_counter()
            with torch.no_grad():
                loss_of(frozen, batch)
            shares.append((time.perf_counter() - middle) / (middle - start))
        return sorted(shares)[repeats // 2]
    finally:
        torch.set_num_threads(threads)


def exchange_s(swaps: int = 500) -> float:
    """Return the seconds in which two processes exchange a batch's predictions, doing nothing else."""
    relay = RelayThread(2, 1, Waits(meeting_s=60.0, patience_s=60.0, halt_s=60.0))
    try:
        calls = [(relay.address, replica, swaps) for replica in range(2)]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            return max(pool.starmap(_swap, calls))
    finally:
        relay.close()


def _swap(address: str, replica: int, swaps: int) -> float:
    """Exchange predictions of ten classes as one replica; return the median seconds of one exchange."""
    line, seat, scores = Line(address), Seat(replica, 0, "once", (1 - replica,)), bytes(BATCH * 10 * 4)
    took = []
    for number in range(swaps):
        start = time.perf_counter()
        line.ask("swap", seat, (number, 0), 1, scores)
        took.append(time.perf_counter() - start)
    line.close()
    return sorted(took)[swaps // 2]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    loss, _ = loss_of(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
