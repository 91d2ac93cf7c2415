"""Tests of the agreement against the formulas of Anil et al. 2018 and Hinton et al. 2015, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dist_train.agreement import Measure, agreement

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
