"""The course of the learning rate and the weight decay: the section ``schedule`` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dist_train.config.section import Fraction, NonNegative, Positive, PositiveInt, Section

UNITS = ("epochs", "steps", "samples")


class Span(Section):
    """A length of training, given in exactly one unit."""

    epochs: Positive | None = None
    steps: PositiveInt | None = None
    samples: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of {', '.join(UNITS)} (found {found})")
        return self


class NoWarmup(Section):
    kind: Literal["none"] = "none"


class GradualWarmup(Span):
    kind: Literal["gradual"] = "gradual"
    # null: start from the base learning rate, as Goyal et al. do.
    start_lr: NonNegative | None = None


class ConstantWarmup(Span):
    kind: Literal["constant"] = "constant"
    # null: hold the base learning rate.
    start_lr: NonNegative | None = None


AnyWarmup = Annotated[NoWarmup | GradualWarmup | ConstantWarmup, Field(discriminator="kind")]


class ConstantDecay(Section):
    kind: Literal["constant"] = "constant"


class StepDecay(Section):
    kind: Literal["step"] = "step"
    # In epochs, counted from the start of training, warmup included.
    milestones: tuple[Positive, ...]
    gamma: Positive = 0.1

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, found {list(self.milestones)}")
        return self


class CosineDecay(Section):
    kind: Literal["cosine"] = "cosine"
    min_lr: NonNegative = 0.0


class CosineRestarts(Section):
    """Either ``cycles`` of equal length (Huang et al. 2017), or a first cycle that grows by ``factor``
    (Loshchilov and Hutter 2016)."""

    kind: Literal["cosine_restarts"] = "cosine_restarts"
    cycles: PositiveInt | None = None
    first_epochs: Positive | None = None
    factor: Annotated[float, Field(ge=1)] = 2.0
    min_lr: NonNegative = 0.0

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.cycles is None) == (self.first_epochs is None):
            raise ValueError("give exactly one of cycles (equal parts) and first_epochs (growing by factor)")
        return self


class OneCycle(Section):
    """Smith 2018: up from peak/start_factor, down again, then a tail down to peak/final_factor."""

    kind: Literal["one_cycle"] = "one_cycle"
    # The share of training spent in the triangle; the rest is the tail.
    triangle: Annotated[float, Field(gt=0, le=1)] = 0.9
    start_factor: Annotated[float, Field(gt=1)] = 10.0
    final_factor: Annotated[float, Field(gt=1)] = 100.0
    # Lowest and highest momentum, moved against the learning rate; null leaves it constant.
    momentum: tuple[Fraction, Fraction] | None = None


AnyDecay = Annotated[
    ConstantDecay | StepDecay | CosineDecay | CosineRestarts | OneCycle, Field(discriminator="kind")
]


class WeightDecaySteps(Section):
    """From each milestone, in epochs, on: what optimizer.weight_decay is multiplied by."""

    milestones: tuple[Positive, ...]
    factors: tuple[NonNegative, ...]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, found {list(self.milestones)}")
        if len(self.milestones) != len(self.factors):
            raise ValueError(
                f"{len(self.milestones)} milestones need as many factors, found {len(self.factors)}"
            )
        return self


class Schedule(Section):
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    # The batch that optimizer.lr was tuned for; null: no scaling, whatever the batch.
    base_batch: PositiveInt | None = None
    warmup: AnyWarmup = NoWarmup()
    decay: AnyDecay = ConstantDecay()
    # Codistillation regularises, so that a run may need less of it (Sodhani et al. 2020); null: none.
    weight_decay: WeightDecaySteps | None = None
    # When a run resumes with another global batch: climb from the old rate to the new over this span.
    rewarm: Span | None = None

    @model_validator(mode="after")
    def _one_cycle_warms_up_itself(self) -> Self:
        if isinstance(self.decay, OneCycle) and not isinstance(self.warmup, NoWarmup):
            raise ValueError("decay one_cycle has its own warmup: set warmup.kind to none")
        return self
