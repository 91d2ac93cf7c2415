"""How replicas teach one another: the section ``codistill`` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dist_train.config.section import NonNegative, NonNegativeInt, Positive, PositiveInt, Section

# A teacher of which nothing newer has come for so many intervals is gone; but an interval of a few updates is
# soon over, and a post takes its time.
INTERVALS_TO_LIVE, LEAST_TO_LIVE = 20, 1000


class Codistill(Section):
    """Anil et al. 2018: each replica learns from the others' predictions too; all counts are of updates."""

    # Of the agreement with the teachers, beside the task's loss.
    weight: NonNegative = 1.0
    # Updates on the task's loss alone, while predictions are still noise.
    burn_in: NonNegativeInt = 0
    # Updates after that over which the weight rises from 0.
    ramp: NonNegativeInt = 0
    # Updates between two snapshots that a replica posts.
    interval: PositiveInt = 50
    # checkpoint: a frozen copy of each teacher runs beside the model; prediction: replicas train on the same
    # batches and send each other what they predict of them.
    exchange: Literal["checkpoint", "prediction"] = "checkpoint"
    # Who teaches whom: everybody, the next replica in a ring, or two and two.
    topology: Literal["all", "ring", "pairs"] = "all"
    # disjoint: each replica trains on a part of its own; same: each on all of it.
    data: Literal["disjoint", "same"] = "disjoint"
    # What agreement means: kl (from teacher to student), cross_entropy (with the teacher's probabilities as
    # labels), or squared_error (of the scores).
    loss: Literal["kl", "cross_entropy", "squared_error"] = "kl"
    # Divides the scores of both before the softmax; its square multiplies the loss (Hinton et al. 2015).
    # squared_error has none.
    temperature: Positive = 1.0
    # A teacher is left out after so many updates without anything newer of it; null: 20 intervals, at least
    # 1,000 updates.
    max_age: PositiveInt | None = None
    # Posts of each replica that stay on the board. all: a replay and a schedule need those that were used.
    keep_posts: Annotated[int, Field(ge=2, strict=True)] | Literal["all"] = 3
    # A run of several replicas whose changes of teachers are followed, to the update.
    schedule: str | None = None
    # Exchange by prediction: how long a replica waits for one that is silent, before it goes on without it.
    patience_s: Positive = 10.0

    @property
    def by_prediction(self) -> bool:
        """Whether replicas train on the same batches, each on all of the data."""
        return self.exchange == "prediction"

    @property
    def max_age_in_force(self) -> int:
        if self.max_age is not None:
            return self.max_age
        return max(INTERVALS_TO_LIVE * self.interval, LEAST_TO_LIVE)
