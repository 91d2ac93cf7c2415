"""What workers agree on between the two halves of a step. Each coupling is one sibling file.

The loop knows a coupling by four verbs. ``start`` wraps the model; ``objective`` turns the task's loss
into what this worker minimises; ``update`` stands between *compute gradients* and *apply gradients*;
``observe`` sees each validation. Siblings never import one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

VERBS = ("start", "objective", "update", "observe")


@dataclass(frozen=True)
class Started:
    """The module to call in the forward pass, and the context in which a backward pass stays local.

    ``foresee``, where there is one, is shown each batch during the backward pass of the batch before.
    """

    module: nn.Module
    local: Callable[[], AbstractContextManager[None]]
    foresee: Callable[[Any], None] | None = None


class Apply(Protocol):
    """The second half of a step, whole or in its parts: clip the gradients, step, clear the gradients."""

    def __call__(self) -> None: ...

    def clip(self) -> None: ...

    def step(self) -> None: ...

    def clear(self) -> None: ...


class Coupling(Protocol):
    # Whether this worker writes the state that its whole group restores.
    writes: bool

    def start(self, model: nn.Module) -> Started:
        """Wrap the model for training; called once, on all workers, with equal parameters on each."""

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        """Return what to minimise for a batch that holds ``share`` of the update's samples."""

    def update(self, apply: Apply) -> None:
        """Bring the gradients together and see to it that they are applied; ``apply`` applies one's own."""

    def observe(self, metrics: Mapping[str, float]) -> None:
        """See the outcome of a validation."""
