"""The floor: what two workers and one server cannot do without on this machine, and no control at all.

python -m benchmarks.contestants.floor mlp [--parts compute gradient step read]

Nothing decides, nothing is counted, checked, logged or survives a fault. For each gradient there are just:
compute, in the worker: the batch out of memory, forward and backward;
gradient, in the worker: one copy of the gradient into shared memory;
step, in the server: torch's fused SGD with momentum, reading that gradient where it lies;
read, in the server: one copy of the new parameters to where the worker's model has its own, so that no
reader ever meets a version half written;
and a byte through a pipe each way. With fewer parts the same program shows what each is worth.
"""

from __future__ import annotations

import argparse
import mmap
import os
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.workload import (
    BATCH,
    LEARNING_RATE,
    MOMENTUM,
    Memory,
    loss_of,
    make_columns,
    make_model,
    step_begins,
    whole,
)

WORKERS = 2
PARTS = ("compute", "gradient", "step", "read")
# Every 16 elements (64 bytes): a parameter begins where a cache line does.
ALIGNMENT = 16


def shared(size: int) -> Tensor:
    """Return ``size`` float32 zeros that forked children share; without a name, nothing is left of them."""
    return torch.frombuffer(mmap.mmap(-1, 4 * size), dtype=torch.float32)


def views(flat: Tensor, model: nn.Module) -> list[Tensor]:
    """Return a view of ``flat`` for each parameter of ``model``, in its shape."""
    shaped, start = [], 0
    for parameter in model.parameters():
        shaped.append(flat[start : start + parameter.numel()].view_as(parameter))
        start += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
    return shaped


def flat_size(model: nn.Module) -> int:
    return sum(-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in model.parameters())


@dataclass(frozen=True)
class Lane:
    """What one worker and the server have in common: two flat vectors, and a pipe for each direction."""

    gradient: Tensor
    parameters: Tensor
    done: tuple[int, int]
    go: tuple[int, int]

    @classmethod
    def of(cls, size: int) -> Lane:
        return cls(shared(size), shared(size), os.pipe(), os.pipe())


def batches(workload: str, rank: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return what draws the next batch, epoch after epoch, as the other contestants draw theirs."""
    torch.manual_seed(rank)
    data = Memory(*make_columns(workload))
    loader = DataLoader(data, BATCH, shuffle=True, collate_fn=whole, drop_last=True)
    endless = (batch for _ in count() for batch in loader)
    return lambda: next(endless)


def work(workload: str, rank: int, lane: Lane, parts: Sequence[str]) -> None:
    """Be a worker, until the benchmark ends it."""
    model, draw = make_model(workload), batches(workload, rank)
    own, sent = views(lane.parameters, model), views(lane.gradient, model)
    for parameter, value in zip(model.parameters(), own, strict=True):
        parameter.data = value
    gradients = [torch.full_like(parameter, 1e-6) for parameter in model.parameters()]
    while True:
        if "compute" in parts:
            loss, _ = loss_of(model, draw())
            loss.backward()
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        else:
            step_begins()
        if "gradient" in parts:
            torch._foreach_copy_(sent, gradients)
        model.zero_grad(set_to_none=True)
        if "step" in parts or "read" in parts:
            os.write(lane.done[1], b"!")
            os.read(lane.go[0], 1)


def serve(workload: str, lanes: Sequence[Lane], parts: Sequence[str]) -> None:
    """Be the server, until all workers have gone."""
    parameters = nn.Parameter(initial(workload))
    optimizer = torch.optim.SGD([parameters], LEARNING_RATE, MOMENTUM, fused=True)
    waiting = {lane.done[0]: lane for lane in lanes}
    while waiting:
        for done in select.select(list(waiting), [], [])[0]:
            lane = waiting[done]
            if not os.read(done, 1):
                del waiting[done]
                continue
            if "step" in parts:
                parameters.grad = lane.gradient
                optimizer.step()
            if "read" in parts:
                lane.parameters.copy_(parameters.detach())
            os.write(lane.go[1], b"!")


def initial(workload: str) -> Tensor:
    """Return the parameters that training starts from, flat."""
    torch.manual_seed(0)
    model = make_model(workload)
    flat = torch.zeros(flat_size(model))
    for view, parameter in zip(views(flat, model), model.parameters(), strict=True):
        view.copy_(parameter.detach())
    return flat


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()

    lanes = [Lane.of(flat_size(make_model(arguments.workload))) for _ in range(WORKERS)]
    for lane in lanes:
        lane.parameters.copy_(initial(arguments.workload))
    # A fork shares the anonymous memory and the pipes; there is one thread only.
    for rank in range(WORKERS):
        get_context("fork").Process(
            target=_worker, args=(arguments.workload, rank, lanes, arguments.parts), daemon=True
        ).start()
    for lane in lanes:
        os.close(lane.done[1])
        os.close(lane.go[0])
    serve(arguments.workload, lanes, arguments.parts)


def _worker(workload: str, rank: int, lanes: Sequence[Lane], parts: Sequence[str]) -> None:
    """Close the other ends, so that whoever is gone is noticed; then work."""
    for number, lane in enumerate(lanes):
        os.close(lane.done[0])
        os.close(lane.go[1])
        if number != rank:
            os.close(lane.done[1])
            os.close(lane.go[0])
    work(workload, rank, lanes[rank], parts)


if __name__ == "__main__":
    main()
