"""Tests of distillation against the objective of Hinton et al. 2015, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_train.agreement import Outputs
from dist_train.config.schema import Distill
from dist_train.couplings import Apply, Started
from dist_train.couplings.distillation import Distillation

Rows = Sequence[Sequence[float]]

X = (1.0, -2.0)
BATCH = torch.tensor([X])
LABEL = 2
STUDENT = ((0.5, 0.1), (-0.3, 0.2), (0.0, 0.4))
# The second teacher is a deeper model than the student.
FIRST: Rows = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))
SECOND: Rows = ((0.2, 0.2), (0.9, -0.1), (0.0, 0.0))


def softmax(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(each / temperature) for each in scores]
    return [each / sum(powers) for each in powers]


def scores(weights: Rows) -> list[float]:
    return [sum(w * x for w, x in zip(line, X, strict=True)) for line in weights]


def linear(weights: Rows) -> nn.Linear:
    model = nn.Linear(len(weights[0]), len(weights), bias=False)
    model.weight.data = torch.tensor(weights)
    return model


def teachers() -> list[nn.Module]:
    larger = nn.Sequential(linear(((1.0, 0.0), (0.0, 1.0))), linear(SECOND))
    return [each.requires_grad_(False) for each in (linear(FIRST), larger)]


class Inside:
    """Another coupling, which notes what it is given."""

    writes = False

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def start(self, model: nn.Module) -> Started:
        self.asked.append(model)
        return Started(model, nullcontext)

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        self.asked.append(loss)
        return loss * share

    def update(self, apply: Apply) -> None:
        self.asked.append(apply)

    def observe(self, metrics: Mapping[str, float]) -> None:
        self.asked.append(metrics)


class Lesson:
    """A student's loss on BATCH, its objective, and what was noted of the agreement."""

    def __init__(self, terms: dict[str, Any], share: float = 1.0) -> None:
        self.inside, self.noted = Inside(), list[tuple[float, float]]()
        self.student, self.teachers = linear(STUDENT), teachers()
        outputs = Outputs(
            lambda predictions: predictions, lambda models, batch: [model(batch) for model in models]
        )
        settings = Distill(teachers=("runs/a",), **terms)
        self.coupling = Distillation(self.inside, settings, self.teachers, outputs, self._note)
        predictions = self.student(BATCH)
        self.loss = nn.functional.cross_entropy(predictions, torch.tensor([LABEL]))
        self.objective = self.coupling.objective(self.loss, predictions, BATCH, share)

    def _note(self, soft: Tensor, share: float) -> None:
        assert not soft.requires_grad
        self.noted.append((float(soft), share))


def mean_of_teachers(temperature: float) -> list[float]:
    taught = [softmax(scores(each), temperature) for each in (FIRST, SECOND)]
    return [(a + b) / 2 for a, b in zip(*taught, strict=True)]


def soft_by_hand(temperature: float) -> float:
    p, q = mean_of_teachers(temperature), softmax(scores(STUDENT), temperature)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_the_objective_mixes_the_label_and_the_softened_mean_of_the_teachers(
    weight: float, temperature: float
) -> None:
    lesson = Lesson({"soft_weight": weight, "temperature": temperature})
    hard = -math.log(softmax(scores(STUDENT))[LABEL])
    by_hand = (1 - weight) * hard + weight * soft_by_hand(temperature)
    # Rounding in float32 is multiplied by T^2 as well.
    assert lesson.objective.item() == pytest.approx(by_hand, rel=1e-5, abs=2e-7 * temperature**2)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_its_gradient_is_that_of_the_paper(temperature: float) -> None:
    # Equation 2, 1/T (q - p), times T^2, and that of the label at temperature 1.
    lesson = Lesson({"soft_weight": 0.75, "temperature": temperature})
    lesson.objective.backward()
    p, q = mean_of_teachers(temperature), softmax(scores(STUDENT), temperature)
    sharp = softmax(scores(STUDENT))
    label = [float(each == LABEL) for each in range(3)]
    pull = [
        0.25 * (s - y) + 0.75 * temperature * (b - a) for a, b, s, y in zip(p, q, sharp, label, strict=True)
    ]
    assert lesson.student.weight.grad is not None
    by_hand = [[each * x for x in X] for each in pull]
    assert lesson.student.weight.grad.tolist() == [pytest.approx(line, abs=1e-5) for line in by_hand]


def test_no_gradient_reaches_a_teacher() -> None:
    lesson = Lesson({})
    lesson.objective.backward()
    assert all(each.grad is None for teacher in lesson.teachers for each in teacher.parameters())


def test_the_agreement_is_noted_apart_from_the_loss_with_its_share() -> None:
    lesson = Lesson({"soft_weight": 0.25, "temperature": 3.0}, share=0.125)
    assert lesson.noted == [(pytest.approx(soft_by_hand(3.0), rel=1e-4), 0.125)]


def test_without_weight_the_loss_is_the_very_same_and_nobody_is_asked() -> None:
    lesson = Lesson({"soft_weight": 0.0})
    assert lesson.inside.asked == [lesson.loss]
    assert lesson.inside.asked[0] is lesson.loss
    assert lesson.noted == []


def test_a_batch_without_a_share_in_the_update_teaches_nothing() -> None:
    lesson = Lesson({}, share=0.0)
    assert lesson.noted == []
    assert lesson.objective.item() == 0


def test_all_else_is_what_the_coupling_inside_does() -> None:
    lesson = Lesson({})
    lesson.inside.asked.clear()
    model, apply, metrics = linear(STUDENT), object(), {"loss": 1.0}
    assert lesson.coupling.start(model).module is model
    lesson.coupling.update(apply)  # type: ignore[arg-type]
    lesson.coupling.observe(metrics)
    assert lesson.inside.asked == [model, apply, metrics]
    assert lesson.coupling.writes is False
