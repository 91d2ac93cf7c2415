"""Gradients on their way from a GPU to memory that the server reads, while the backward pass still goes on.

Each is copied on a stream of its own as soon as it is ready, so that only the copy of the last one is waited
for. Not yet measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from dist_train.core.flat import Placed


class Side(Protocol):
    """Where copies run beside the computation."""

    def after_compute(self) -> AbstractContextManager[None]:
        """Return a context whose work begins once all that was computed so far is there."""

    def before_compute(self) -> None:
        """Have what is computed from now on begin once all of that work is done."""

    def wait(self) -> None:
        """Return when all of that work is done."""


class SideStream:
    """A stream of its own on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def after_compute(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def before_compute(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def wait(self) -> None:
        self._stream.synchronize()


class Staging:
    """Copies the gradients of the parameters ``placed`` into one vector in the course of a backward pass.

    For gradients that are final once a backward pass has made them: of one pass, one worker, not clipped.
    """

    def __init__(self, placed: Sequence[tuple[Placed, nn.Parameter]], side: Side) -> None:
        self._side = side
        self._out: Tensor | None = None
        self._copied: set[str] = set()
        for each, parameter in placed:
            hook = partial(self._ready, each)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def begin(self, out: Tensor) -> None:
        """Have the coming backward pass copy its gradients into ``out``."""
        self._out = out
        self._copied.clear()

    @torch.no_grad()
    def _ready(self, placed: Placed, parameter: Tensor) -> None:
        if self._out is None or parameter.grad is None:
            return
        with self._side.after_compute():
            placed.view(self._out).copy_(parameter.grad, non_blocking=True)
        self._copied.add(placed.name)

    def finish(self, out: Tensor) -> frozenset[str]:
        """Wait for the copies; return the names of the parameters whose gradients are in ``out``."""
        staged, self._out = self._out, None
        if staged is None:
            return frozenset()
        self._side.wait()
        return frozenset(self._copied if staged.data_ptr() == out.data_ptr() else ())
