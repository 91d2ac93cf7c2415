"""How far a student's predictions are from its teachers': what codistillation and distillation minimise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Measure = Literal["kl", "cross_entropy", "squared_error"]


@dataclass(frozen=True)
class Outputs:
    """How a task's predictions become scores: ``of`` those of a model's own loss, ``by`` other models, of the
    same batch: without gradients, and whatever they draw leaves the student's random numbers as they are."""

    of: Callable[[Tensor], Tensor]
    by: Callable[[Sequence[nn.Module], Any], list[Tensor]]


def agreement(student: Tensor, teachers: Sequence[Tensor], measure: Measure, temperature: float) -> Tensor:
    """Return how far a student's scores (..., classes) are from its teachers' mean prediction, a scalar.

    The mean over samples (and, for a language model, tokens) of

        kl              T^2 KL(p || q),  p = mean of softmax(teacher / T),  q = softmax(student / T)
        cross_entropy   T^2 H(p, q), the same up to the entropy of p, which no student can change
        squared_error   (student - mean teacher)^2, the mean over classes too

    Probabilities are averaged, not scores (Anil et al. 2018, section 2). The factor T^2 keeps the size of the
    gradient whatever the temperature T (Hinton et al. 2015, section 2).
    """
    scores = student.float()
    if measure == "squared_error":
        return F.mse_loss(scores, torch.stack([each.float() for each in teachers]).mean(dim=0))
    classes = scores.shape[-1]
    log_student = F.log_softmax(scores / temperature, dim=-1).reshape(-1, classes)
    softened = [F.softmax(each.float() / temperature, dim=-1) for each in teachers]
    mean = torch.stack(softened).mean(dim=0).reshape(-1, classes)
    if measure == "kl":
        loss = F.kl_div(log_student, mean, reduction="batchmean")
    else:
        loss = -(mean * log_student).sum(dim=-1).mean()
    return loss * temperature**2
