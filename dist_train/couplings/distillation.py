"""Distillation: a student also learns to predict what finished models do (Hinton et al. 2015, section 2).

With q the student's probabilities and p the mean of the teachers', both at temperature T, the objective is

    (1 - w) * task's loss + w * T^2 KL(p_T || q_T)

The task's loss is at temperature 1, and the teachers never change. Another coupling does what it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dist_train.agreement import Outputs, agreement
from dist_train.config.schema import Distill
from dist_train.couplings import Apply, Coupling, Started

# Is told the agreement on a batch, and which share of the update's samples that holds.
Note = Callable[[Tensor, float], None]


class Distillation:
    """``teachers`` are frozen and in evaluation mode; at least one where the agreement has a weight."""

    def __init__(
        self, inside: Coupling, terms: Distill, teachers: Sequence[nn.Module], outputs: Outputs, note: Note
    ) -> None:
        self.writes = inside.writes
        self._inside = inside
        self._terms = terms
        self._teachers = teachers
        self._outputs = outputs
        self._note = note

    def start(self, model: nn.Module) -> Started:
        return self._inside.start(model)

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        weight = self._terms.soft_weight
        if weight > 0 and share > 0:
            taught = self._outputs.by(self._teachers, batch)
            scores = self._outputs.of(predictions)
            soft = agreement(scores, taught, self._terms.loss, self._terms.temperature)
            self._note(soft.detach(), share)
            loss = (1 - weight) * loss + weight * soft
        return self._inside.objective(loss, predictions, batch, share)

    def update(self, apply: Apply) -> None:
        self._inside.update(apply)

    def observe(self, metrics: Mapping[str, float]) -> None:
        self._inside.observe(metrics)
