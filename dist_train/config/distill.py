"""How a student learns from runs that are done: the section ``distill`` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dist_train.config.section import Positive, Section


class Distill(Section):
    """Hinton et al. 2015: the mean prediction of finished models is learnt beside the labels."""

    # Directories of runs that are done; of one with several replicas, all are teachers.
    teachers: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="a list of at least one run directory"),
    ]
    # The share of the agreement with the teachers in the loss; the rest is the task's own.
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    # Divides the scores of both before the softmax; its square multiplies the agreement.
    temperature: Positive = 2.0
    # As in codistill.
    loss: Literal["kl", "cross_entropy", "squared_error"] = "kl"
