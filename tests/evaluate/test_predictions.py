"""Ensembles and churn by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dist_train.evaluate.predictions import apart, are_scores, ensemble, probabilities


def scores(*rows: list[float]) -> torch.Tensor:
    """Scores of which the probabilities are ``rows``, each row moved by a number of its own."""
    shift = torch.arange(len(rows)).unsqueeze(1)
    return torch.tensor(rows).log() + shift


FIRST = scores([0.5, 0.25, 0.25], [0.8, 0.1, 0.1])
SECOND = scores([0.1, 0.1, 0.8], [0.6, 0.2, 0.2])


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        (torch.zeros(4, 2), True),
        (torch.zeros(4, 7, 256, dtype=torch.bfloat16), True),
        (torch.zeros(4), False),
        (torch.zeros(4, 1), False),
        (torch.zeros(4, 2, dtype=torch.int64), False),
    ],
)
def test_scores_are_floats_for_each_of_several_classes(predictions: torch.Tensor, expected: bool) -> None:
    assert are_scores(predictions) is expected


def test_scores_become_probabilities_and_values_stay() -> None:
    assert probabilities(FIRST).tolist() == [
        pytest.approx([0.5, 0.25, 0.25], rel=1e-6),
        pytest.approx([0.8, 0.1, 0.1], rel=1e-6),
    ]
    assert probabilities(torch.tensor([3, 5])).tolist() == [3, 5]


def test_an_ensemble_predicts_the_mean_of_the_probabilities() -> None:
    together = ensemble([FIRST, SECOND])
    assert together.dtype == torch.float32
    expected = torch.tensor([[0.3, 0.175, 0.525], [0.7, 0.15, 0.15]])
    torch.testing.assert_close(together.exp(), expected)
    # As scores they mean the same, and the loss of label 2 is minus the logarithm of its mean probability.
    torch.testing.assert_close(together.softmax(dim=-1), expected)
    loss = F.cross_entropy(together, torch.tensor([2, 0]))
    assert loss.item() == pytest.approx(-(math.log(0.525) + math.log(0.7)) / 2, rel=1e-6)


def test_an_ensemble_of_values_is_their_mean() -> None:
    assert ensemble([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]).tolist() == [2, 4]


def test_a_probability_too_small_to_be_written_has_a_logarithm_still() -> None:
    together = ensemble([torch.tensor([[0.0, -2000.0]]), torch.tensor([[0.0, -2000.0]])])
    assert together.tolist() == [[0.0, -2000.0]]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_an_ensemble_is_no_less_precise_than_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    assert ensemble([FIRST.to(dtype), SECOND.to(dtype)]).dtype == expected


def test_churn_is_a_mean_over_samples_and_classes_and_a_share_of_labels() -> None:
    found = apart(FIRST, SECOND)
    # |p - q|: 0.4 + 0.15 + 0.55 in the first sample, 0.2 + 0.1 + 0.1 in the second.
    assert found.mean_abs_difference == pytest.approx(1.5 / 6, rel=1e-6)
    assert found.changed_labels == 0.5


def test_batches_count_by_their_samples() -> None:
    together = apart(FIRST[:1], SECOND[:1]) + apart(FIRST[1:], SECOND[1:])
    whole = apart(FIRST, SECOND)
    assert together.mean_abs_difference == pytest.approx(whole.mean_abs_difference, rel=1e-12)
    assert together.changed_labels == whole.changed_labels


def test_where_a_sample_has_several_predictions_each_of_them_counts() -> None:
    found = apart(torch.stack([FIRST, FIRST]), torch.stack([SECOND, FIRST]))
    assert found.mean_abs_difference == pytest.approx(1.5 / 12, rel=1e-6)
    assert found.changed_labels == 0.25


def test_values_have_a_distance_and_no_labels() -> None:
    found = apart(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0]))
    assert found.mean_abs_difference == 0.75
    assert found.changed_labels is None


def test_a_model_is_not_apart_from_itself() -> None:
    found = apart(FIRST, FIRST + 3)
    assert found.mean_abs_difference == pytest.approx(0, abs=1e-7)
    assert found.changed_labels == 0
