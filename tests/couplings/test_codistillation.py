"""Tests of codistillation against the formulas of Anil et al. 2018 and Hinton et al. 2015, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_train.config.schema import Codistill
from dist_train.couplings import Apply, Started
from dist_train.couplings.codistillation import Codistillation, Measure, Progress, agreement

ST, T1, T2 = [0.2, -0.4, 1.0], [1.0, 0.0, -1.0], [0.0, 2.0, 0.5]


def softmax(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(each / temperature) for each in scores]
    return [each / sum(powers) for each in powers]


def row(scores: Sequence[float], learns: bool = False) -> Tensor:
    return torch.tensor([list(scores)], requires_grad=learns)


class TestAgreement:
    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_kl_goes_from_the_mean_probability_of_the_teachers_to_the_student(
        self, temperature: float
    ) -> None:
        first, second = softmax(T1, temperature), softmax(T2, temperature)
        p = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        q = softmax(ST, temperature)
        by_hand = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        found = agreement(row(ST), [row(T1), row(T2)], "kl", temperature)
        assert float(found) == pytest.approx(by_hand, rel=1e-5)

    def test_cross_entropy_differs_by_the_entropy_of_the_teacher(self) -> None:
        p = softmax(T1)
        entropy = -sum(each * math.log(each) for each in p)
        kl = float(agreement(row(ST), [row(T1)], "kl", 1.0))
        assert float(agreement(row(ST), [row(T1)], "cross_entropy", 1.0)) == pytest.approx(kl + entropy)

    def test_squared_error_is_of_the_scores(self) -> None:
        mean = [(a + b) / 2 for a, b in zip(T1, T2, strict=True)]
        by_hand = sum((a - b) ** 2 for a, b in zip(ST, mean, strict=True)) / 3
        found = agreement(row(ST), [row(T1), row(T2)], "squared_error", 1.0)
        assert float(found) == pytest.approx(by_hand)

    @pytest.mark.parametrize("measure", ["kl", "cross_entropy"])
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_its_gradient_is_the_difference_of_the_probabilities_times_the_temperature(
        self, measure: Measure, temperature: float
    ) -> None:
        # Hinton et al. 2015, equation 2, times T^2.
        student = row(ST, learns=True)
        agreement(student, [row(T1)], measure, temperature).backward()
        assert student.grad is not None
        p, q = softmax(T1, temperature), softmax(ST, temperature)
        by_hand = [temperature * (b - a) for a, b in zip(p, q, strict=True)]
        assert student.grad[0].tolist() == pytest.approx(by_hand, abs=1e-6)

    def test_tokens_count_like_samples(self) -> None:
        tokens = torch.tensor([[ST, T1], [T2, ST]])
        taught = torch.tensor([[T1, T2], [T2, T2]])
        flat = agreement(tokens.reshape(4, 3), [taught.reshape(4, 3)], "kl", 1.0)
        assert float(agreement(tokens, [taught], "kl", 1.0)) == pytest.approx(float(flat))

    @pytest.mark.parametrize("measure", ["kl", "squared_error"])
    def test_who_agrees_has_nothing_to_learn(self, measure: Measure) -> None:
        assert float(agreement(row(T1), [row(T1)], measure, 3.0)) == pytest.approx(0, abs=1e-6)


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
        self.found: list[tuple[float, float] | str] = []

    def agreed(self, loss: Tensor, share: float) -> None:
        self.found.append((float(loss), share))

    def update_made(self) -> None:
        self.found.append("update")


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

        record = Noted()
        coupling, _ = coupled(Codistill(burn_in=8), teachers, updates=7, record=record)
        coupling.update(ApplyOnce())
        assert (applied, teachers.told, record.found) == ([[]], [8], ["update"])

    def test_teachers_begin_where_the_replica_is(self) -> None:
        teachers = Fixed([])
        coupling, _ = coupled(Codistill(), teachers, updates=7)
        coupling.start(linear(self.STUDENT))
        assert teachers.began == 7
