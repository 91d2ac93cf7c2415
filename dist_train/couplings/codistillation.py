"""Codistillation: a replica also learns to predict what the others do (Anil et al. 2018, algorithm 1).

To the task's loss comes the agreement with the mean prediction of the *other* replicas, as they were some
updates ago. No gradient goes through a teacher. Inside the replica another coupling does what it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from dist_train.agreement import agreement
from dist_train.config.schema import Codistill
from dist_train.couplings import Apply, Coupling, Started
from dist_train.rules.teaching import weight_at


class Teachers(Protocol):
    """The other replicas, as this one knows them; the same on all workers of a group at every update.

    ``foresee``, where there is one, begins to predict the batch that comes next, beside the computation.
    """

    @property
    def foresee(self) -> Callable[[Any], None] | None: ...

    def begin(self, model: nn.Module, updates: int) -> None:
        """Get ready to teach a model of this kind, which has received ``updates``."""

    def predictions(self, scores: Tensor, batch: Any, updates: int) -> Sequence[Tensor]:
        """Return what each teacher predicts of a batch, of which the student predicts ``scores``.

        It is for the update after ``updates``; empty while there are no teachers.
        """

    def after(self, updates: int) -> None:
        """Show the others how far this replica is, and look how far they are."""


class Record(Protocol):
    """Where the agreement is noted down, apart from the task's loss."""

    def agreed(self, loss: Tensor, share: float) -> None:
        """Take note of the agreement on a batch that holds ``share`` of the update's samples."""


@dataclass(frozen=True)
class Progress:
    """How many updates the parameters have received: ``before`` a step, and ``after`` it."""

    before: Callable[[], int]
    after: Callable[[], int]


class Codistillation:
    """``scores`` turns a task's predictions into what is agreed on: (..., classes)."""

    def __init__(
        self,
        inside: Coupling,
        terms: Codistill,
        teachers: Teachers,
        scores: Callable[[Tensor], Tensor],
        progress: Progress,
        record: Record,
    ) -> None:
        self.writes = inside.writes
        self._inside = inside
        self._terms = terms
        self._teachers = teachers
        self._scores = scores
        self._progress = progress
        self._record = record

    def start(self, model: nn.Module) -> Started:
        started = self._inside.start(model)
        self._teachers.begin(model, self._progress.before())
        return replace(started, foresee=self._teachers.foresee)

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        terms, updates = self._terms, self._progress.before()
        weight = weight_at(updates, terms.weight, terms.burn_in, terms.ramp)
        if weight > 0 and share > 0:
            scores = self._scores(predictions)
            taught = self._teachers.predictions(scores.detach(), batch, updates)
            if taught:
                found = agreement(scores, taught, terms.loss, terms.temperature)
                self._record.agreed(found.detach(), share)
                loss = loss + weight * found
        return self._inside.objective(loss, predictions, batch, share)

    def update(self, apply: Apply) -> None:
        self._inside.update(apply)
        self._teachers.after(self._progress.after())

    def observe(self, metrics: Mapping[str, float]) -> None:
        self._inside.observe(metrics)
