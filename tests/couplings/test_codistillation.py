"""Tests of codistillation against the formulas of Anil et al. 2018, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_train.agreement import agreement
from dist_train.config.schema import Codistill
from dist_train.couplings import Apply, Started
from dist_train.couplings.codistillation import Codistillation, Progress


def softmax(scores: Sequence[float]) -> list[float]:
    powers = [math.exp(each) for each in scores]
    return [each / sum(powers) for each in powers]


class Inside:
    """A coupling that minimises the loss as it is."""

    writes = True

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def start(self, model: nn.Module) -> Started:
        return Started(model, nullcontext)

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        self.losses.append(loss)
        return loss * share

    def update(self, apply: Apply) -> None:
        apply()

    def observe(self, metrics: Mapping[str, float]) -> None:
        pass


class Fixed:
    """Teachers that never change."""

    foresee = None

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = models
        self.asked: list[int] = []
        self.told: list[int] = []

    def begin(self, model: nn.Module, updates: int) -> None:
        self.began = updates

    def predictions(self, scores: Tensor, batch: Any, updates: int) -> Sequence[Tensor]:
        assert not scores.requires_grad
        self.asked.append(updates)
        with torch.no_grad():
            return [model(batch) for model in self.models]

    def after(self, updates: int) -> None:
        self.told.append(updates)


class Noted:
    """A record that keeps what it is told."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []

    def agreed(self, loss: Tensor, share: float) -> None:
        self.found.append((float(loss), share))


def linear(weights: Sequence[Sequence[float]]) -> nn.Linear:
    model = nn.Linear(len(weights[0]), len(weights), bias=False)
    model.weight.data = torch.tensor(weights)
    return model


def coupled(
    terms: Codistill, teachers: Fixed, updates: int = 0, record: Noted | None = None
) -> tuple[Codistillation, Inside]:
    inside = Inside()
    progress = Progress(lambda: updates, lambda: updates + 1)
    record = record or Noted()
    return Codistillation(inside, terms, teachers, lambda given: given, progress, record), inside


class TestObjective:
    BATCH = torch.tensor([[1.0, -2.0]])
    STUDENT = ((0.5, 0.1), (-0.3, 0.2), (0.0, 0.4))
    TEACHERS = (((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)), ((0.2, 0.2), (0.9, -0.1), (0.0, 0.0)))

    def test_two_fixed_teachers_pull_as_computed_by_hand(self) -> None:
        student, teachers = linear(self.STUDENT), [linear(each) for each in self.TEACHERS]
        coupling, _ = coupled(Codistill(weight=0.5), Fixed(teachers))
        predictions = student(self.BATCH)
        loss = nn.functional.cross_entropy(predictions, torch.tensor([2]))
        coupling.objective(loss, predictions, self.BATCH, 1.0).backward()

        def scores(weights: Sequence[Sequence[float]]) -> list[float]:
            return [sum(w * x for w, x in zip(line, (1.0, -2.0), strict=True)) for line in weights]

        q = softmax(scores(self.STUDENT))
        taught = [softmax(scores(each)) for each in self.TEACHERS]
        p = [(a + b) / 2 for a, b in zip(*taught, strict=True)]
        label = [0.0, 0.0, 1.0]
        pull = [(b - y) + 0.5 * (b - a) for a, b, y in zip(p, q, label, strict=True)]
        assert student.weight.grad is not None
        by_hand = [[each * x for x in (1.0, -2.0)] for each in pull]
        assert student.weight.grad.tolist() == [pytest.approx(line, abs=1e-6) for line in by_hand]

    def test_no_gradient_reaches_a_teacher(self) -> None:
        student, teacher = linear(self.STUDENT), linear(self.TEACHERS[0])
        coupling, _ = coupled(Codistill(), Fixed([teacher]))
        predictions = student(self.BATCH)
        coupling.objective(predictions.sum(), predictions, self.BATCH, 1.0).backward()
        assert teacher.weight.grad is None

    @pytest.mark.parametrize("terms", [Codistill(weight=0.0), Codistill(burn_in=1)])
    def test_without_weight_the_loss_is_the_very_same(self, terms: Codistill) -> None:
        student = linear(self.STUDENT)
        coupling, inside = coupled(terms, Fixed([linear(self.TEACHERS[0])]))
        predictions = student(self.BATCH)
        loss = predictions.sum()
        coupling.objective(loss, predictions, self.BATCH, 1.0)
        assert inside.losses[0] is loss

    def test_who_has_no_share_in_an_update_asks_nobody(self) -> None:
        teachers = Fixed([linear(self.TEACHERS[0])])
        coupling, inside = coupled(Codistill(), teachers)
        loss = torch.ones(())
        coupling.objective(loss, torch.ones(1, 3), self.BATCH, 0.0)
        assert (inside.losses[0] is loss, teachers.asked) == (True, [])

    def test_without_teachers_too(self) -> None:
        coupling, inside = coupled(Codistill(), Fixed([]))
        loss = torch.ones(())
        coupling.objective(loss, torch.ones(1, 3), self.BATCH, 1.0)
        assert inside.losses[0] is loss

    def test_the_agreement_is_told_apart_from_the_loss(self) -> None:
        student, teacher = linear(self.STUDENT), linear(self.TEACHERS[0])
        record = Noted()
        coupling, _ = coupled(Codistill(weight=3.0), Fixed([teacher]), record=record)
        predictions = student(self.BATCH)
        coupling.objective(predictions.sum(), predictions, self.BATCH, 0.25)
        taught = agreement(predictions.detach(), [teacher(self.BATCH).detach()], "kl", 1.0)
        assert record.found == [(pytest.approx(float(taught)), 0.25)]

    def test_teachers_hear_of_each_update_once_it_is_applied(self) -> None:
        teachers, applied = Fixed([linear(self.TEACHERS[0])]), []

        class ApplyOnce:
            def __call__(self) -> None:
                applied.append(list(teachers.told))

            def clip(self) -> None: ...

            def step(self) -> None: ...

            def clear(self) -> None: ...

        coupling, _ = coupled(Codistill(burn_in=8), teachers, updates=7)
        coupling.update(ApplyOnce())
        assert (applied, teachers.told) == ([[]], [8])

    def test_who_foresees_is_shown_the_batches_to_come(self) -> None:
        teachers = Fixed([])
        teachers.foresee = print  # type: ignore[assignment]
        coupling, _ = coupled(Codistill(), teachers)
        assert coupling.start(linear(self.STUDENT)).foresee is print

    def test_teachers_begin_where_the_replica_is(self) -> None:
        teachers = Fixed([])
        coupling, _ = coupled(Codistill(), teachers, updates=7)
        coupling.start(linear(self.STUDENT))
        assert teachers.began == 7
