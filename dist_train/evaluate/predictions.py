"""Predictions as probabilities: their mean over models, and how far those of two models are apart.

Scores of at least two classes (logits) become probabilities by a softmax; all other predictions are taken
as they are. Everything is computed in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def are_scores(predictions: Tensor) -> bool:
    """Whether predictions are class scores: floats of shape (samples, ..., classes), two classes or more.

    A single number per sample, (samples,) or (samples, 1), is a predicted value.
    """
    return predictions.is_floating_point() and predictions.ndim > 1 and predictions.shape[-1] > 1


def probabilities(predictions: Tensor) -> Tensor:
    """Return the probability of each class, or the predicted values, in the shape given."""
    values = predictions.double()
    return values.softmax(dim=-1) if are_scores(predictions) else values


def ensemble(predictions: Sequence[Tensor]) -> Tensor:
    """Return predictions of which ``probabilities`` are the mean of those of several models.

    For class scores these are the logarithms of the mean probabilities, which are scores as well. They
    have the shape of one model's, and its type, or float32 where that is less precise.
    """
    first = predictions[0]
    stacked = torch.stack([each.double() for each in predictions])
    if are_scores(first):
        together = stacked.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(predictions))
    else:
        together = stacked.mean(dim=0)
    return together.to(torch.promote_types(first.dtype, torch.float32))


@dataclass(frozen=True)
class Apart:
    """How far two models' predictions are apart, as sums; those of two batches can be added.

    ``distance`` is the sum of the absolute differences of ``values`` probabilities; ``changed`` of
    ``labels`` predicted labels differ. There are no labels where predictions are not class scores.
    """

    distance: Tensor
    values: int
    changed: Tensor
    labels: int

    def __add__(self, other: Apart) -> Apart:
        return Apart(
            self.distance + other.distance,
            self.values + other.values,
            self.changed + other.changed,
            self.labels + other.labels,
        )

    @property
    def mean_abs_difference(self) -> float:
        """The mean over samples and classes; in Anil et al. 2018, of one probability for each sample."""
        return float(self.distance) / self.values

    @property
    def changed_labels(self) -> float | None:
        """The share of predicted labels that differ; None where there are none."""
        return float(self.changed) / self.labels if self.labels else None


def apart(first: Tensor, second: Tensor) -> Apart:
    """Compare two models' predictions for the same samples; the shapes must be equal."""
    distance = (probabilities(first) - probabilities(second)).abs().sum()
    if not are_scores(first):
        return Apart(distance, first.numel(), torch.zeros_like(distance), 0)
    changed = (first.argmax(dim=-1) != second.argmax(dim=-1)).sum()
    return Apart(distance, first.numel(), changed, first.shape[:-1].numel())
