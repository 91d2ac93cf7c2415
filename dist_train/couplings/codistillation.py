"""Codistillation: a replica also learns to predict what the others do (Anil et al. 2018, algorithm 1).

To the task's loss comes the agreement with the mean prediction of the *other* replicas, as they were some
updates ago. No gradient goes through a teacher. Inside the replica another coupling does what it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dist_train.agreement import Outputs, agreement
from dist_train.config.schema import Codistill
from dist_train.couplings import Apply, Coupling, Started
from dist_train.rules.teaching import weight_at


class Teachers(Protocol):
    """The other replicas, as this one knows them; the same on all its workers at every update."""

    def begin(self, model: nn.Module) -> None:
        """Get ready to teach a model of this kind."""

    def in_force(self, updates: int) -> Sequence[nn.Module]:
        """Return the models to agree with in the update after ``updates``; none while none is known."""

    def agreed(self, loss: Tensor, share: float) -> None:
        """Take note of the agreement on a batch that holds ``share`` of the update's samples."""

    def after(self, updates: int, taught: bool) -> None:
        """Show the others how far this replica is, and look how far they are; ``taught``: the last update."""


class Codistillation:
    """``updates`` returns how many updates the replica has made."""

    def __init__(
        self,
        inside: Coupling,
        terms: Codistill,
        teachers: Teachers,
        outputs: Outputs,
        updates: Callable[[], int],
    ) -> None:
        self.writes = inside.writes
        self._inside = inside
        self._terms = terms
        self._teachers = teachers
        self._outputs = outputs
        self._updates = updates

    def start(self, model: nn.Module) -> Started:
        self._teachers.begin(model)
        return self._inside.start(model)

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        weight, teachers = self._lesson()
        if teachers and share > 0:
            with torch.no_grad():
                taught = [self._outputs.by(teacher, batch) for teacher in teachers]
            found = agreement(
                self._outputs.of(predictions), taught, self._terms.loss, self._terms.temperature
            )
            self._teachers.agreed(found.detach(), share)
            loss = loss + weight * found
        return self._inside.objective(loss, predictions, batch, share)

    def update(self, apply: Apply) -> None:
        done, (_, teachers) = self._updates() + 1, self._lesson()
        self._inside.update(apply)
        self._teachers.after(done, taught=bool(teachers))

    def _lesson(self) -> tuple[float, Sequence[nn.Module]]:
        """The weight of the agreement in the update in the making, and with whom: the same on all workers."""
        terms, updates = self._terms, self._updates()
        weight = weight_at(updates, terms.weight, terms.burn_in, terms.ramp)
        return weight, self._teachers.in_force(updates) if weight > 0 else ()

    def observe(self, metrics: Mapping[str, float]) -> None:
        self._inside.observe(metrics)
