"""Where each step's time went, cheap enough to leave on.

On the CPU the host's clock tells. On a GPU the host runs ahead, so marks are CUDA events, read only when
the figures are asked for: the step itself never waits for the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from dist_train.rules.straggler import StepTimes

PHASES = ("data", "forward", "backward", "communication", "update", "waiting")
# What no phase is named after: where one begins, and where one is broken off to wait.
_BEGIN, _INTERRUPTED = "begin", "interrupted"


class Mark(Protocol):
    def seconds_until(self, later: Mark) -> float: ...


class HostMark:
    def __init__(self) -> None:
        self.at = time.perf_counter()

    def seconds_until(self, later: Mark) -> float:
        assert isinstance(later, HostMark)  # one clock makes one kind of mark
        return later.at - self.at


class CudaMark:
    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record()

    def seconds_until(self, later: Mark) -> float:
        assert isinstance(later, CudaMark)  # one clock makes one kind of mark
        return float(self.event.elapsed_time(later.event)) / 1000


class StepClock:
    """Adds up the time of each phase since the last ``drain``.

    Communication is what is left of the backward pass after the last gradient is ready: the part of the
    exchange that computation did not hide. Waiting for other replicas interrupts the phase that it falls in.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._new_mark: type[HostMark] | type[CudaMark] = CudaMark if device.type == "cuda" else HostMark
        self._marks: list[tuple[str, Mark]] = []
        self._data_s = 0.0
        self._last_gradient: Mark | None = None
        first = next((p for p in model.parameters() if p.requires_grad), None)
        if first is not None:
            first.register_post_accumulate_grad_hook(self._gradient_ready)  # type: ignore[no-untyped-call]

    def _gradient_ready(self, _: torch.Tensor) -> None:
        self._last_gradient = self._new_mark()

    def timed_next(self, batches: Iterator[Any]) -> Any:
        """Return the next batch and add the host's time spent waiting for it."""
        start = time.perf_counter()
        batch = next(batches)
        self._data_s += time.perf_counter() - start
        return batch

    def begin(self) -> None:
        """Mark the beginning of what is timed next: a forward pass, or what comes after a pause."""
        self._marks.append((_BEGIN, self._new_mark()))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Take the time inside for waiting, and not for a part of the phase that goes on around it."""
        self._marks.append((_INTERRUPTED, self._new_mark()))
        try:
            yield
        finally:
            self._marks.append(("waiting", self._new_mark()))

    def end(self, phase: str) -> None:
        """Mark the end of ``phase``, which began at the mark before."""
        if phase == "backward" and self._last_gradient is not None:
            self._marks.append(("backward", self._last_gradient))
            self._last_gradient = None
            phase = "communication"
        self._marks.append((phase, self._new_mark()))

    def computing_s(self) -> float:
        """Return the seconds of this step's forward and backward passes so far; waits for the device."""
        self._wait()
        seconds = 0.0
        for phase, spent in self._spans():
            if phase == "update":
                break
            if phase in ("forward", "backward"):
                seconds += spent
        return seconds

    def drain(self, steps: int) -> StepTimes:
        """Return the mean seconds per step since the last call; waits for the device."""
        totals = dict.fromkeys(PHASES, 0.0)
        self._wait()
        for phase, spent in self._spans():
            totals[phase] += spent
        totals["data"] = self._data_s
        self._marks, self._data_s = [], 0.0
        return StepTimes(**{phase: total / max(1, steps) for phase, total in totals.items()})

    def _spans(self) -> Iterator[tuple[str, float]]:
        """Yield the seconds between two marks and the phase that they belong to, the last first."""
        around = _BEGIN
        for (_, earlier), (phase, later) in zip(self._marks[-2::-1], self._marks[:0:-1], strict=True):
            if phase not in (_INTERRUPTED, "waiting"):
                around = phase
            belongs_to = around if phase == _INTERRUPTED else phase
            if belongs_to != _BEGIN:
                yield belongs_to, earlier.seconds_until(later)

    def _wait(self) -> None:
        if self._marks and isinstance(self._marks[-1][1], CudaMark):
            self._marks[-1][1].event.synchronize()
