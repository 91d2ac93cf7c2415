"""The run's configuration: one typed, frozen tree. Its defaults are the vetted settings.

Nothing here imports torch, so that a wrong configuration is refused before anything heavy starts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dist_train.config.codistill import Codistill
from dist_train.config.combinations import Contradictions, contradictions
from dist_train.config.distill import Distill
from dist_train.config.parallel import (
    AnyDamping,
    AnyOuter,
    AverageOuter,
    Cluster,
    DelayCompensated,
    ElasticOuter,
    InverseDamping,
    NesterovOuter,
    NoDamping,
    Parallel,
    Server,
)
from dist_train.config.schedule import (
    UNITS,
    AnyDecay,
    AnyWarmup,
    ConstantDecay,
    ConstantWarmup,
    CosineDecay,
    CosineRestarts,
    GradualWarmup,
    NoWarmup,
    OneCycle,
    Schedule,
    Span,
    StepDecay,
    WeightDecaySteps,
)
from dist_train.config.section import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Section

# Sections that are written in files of their own are reached through here as well.
__all__ = [
    "UNITS",
    "AnyDamping",
    "AnyDecay",
    "AnyOuter",
    "AnyWarmup",
    "AverageOuter",
    "Cluster",
    "Codistill",
    "ConstantDecay",
    "ConstantWarmup",
    "CosineDecay",
    "CosineRestarts",
    "DelayCompensated",
    "Distill",
    "ElasticOuter",
    "GradualWarmup",
    "InverseDamping",
    "NesterovOuter",
    "NoDamping",
    "NoWarmup",
    "OneCycle",
    "Parallel",
    "Schedule",
    "Server",
    "Span",
    "StepDecay",
    "WeightDecaySteps",
]


class Model(BaseModel):
    """A built-in model or the user's own by import path; further keys are passed to its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Train(Section):
    epochs: Positive | None = None
    steps: PositiveInt | None = None
    samples: PositiveInt | None = None
    # Per worker and forward pass; null when parallel.global_batch is given.
    batch_size: PositiveInt | None = None
    # Forward and backward passes before each update.
    accumulate: PositiveInt = 1
    # The epoch's short last batch: train on it, or leave it out.
    last_batch: Literal["keep", "drop"] = "keep"
    # Largest norm of the gradient of the whole model; null leaves it as it is.
    clip_norm: Positive | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    deterministic: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of {', '.join(UNITS)} (found {found})")
        return self

    @property
    def length(self) -> Span:
        return Span(epochs=self.epochs, steps=self.steps, samples=self.samples)


class Optimizer(Section):
    # The base learning rate: the one that suits schedule.base_batch.
    lr: Positive
    weight_decay: NonNegative = 0.0
    # Goyal et al. 2017, section 5.1: normalisation parameters and biases are not decayed.
    decay_norm_and_bias: bool = False


class SGD(Optimizer):
    name: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Adagrad(Optimizer):
    name: Literal["adagrad"] = "adagrad"
    lr_decay: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 0.0
    eps: Positive = 1e-10


class RMSProp(Optimizer):
    name: Literal["rmsprop"] = "rmsprop"
    alpha: Fraction = 0.99
    momentum: Fraction = 0.0
    centered: bool = False
    eps: Positive = 1e-8


class Adam(Optimizer):
    name: Literal["adam"] = "adam"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    amsgrad: bool = False


class AdamW(Optimizer):
    name: Literal["adamw"] = "adamw"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    amsgrad: bool = False
    weight_decay: NonNegative = 0.01


class LARS(Optimizer):
    name: Literal["lars"] = "lars"
    momentum: Fraction = 0.9
    nesterov: bool = False
    # You et al. 2017: the layer's step as a share of its weights' norm.
    trust: Positive = 0.001
    eps: NonNegative = 1e-9


AnyOptimizer = Annotated[SGD | Adagrad | RMSProp | Adam | AdamW | LARS, Field(discriminator="name")]


class Data(Section):
    # Processes that load samples, for each worker; 0 loads in the worker itself.
    loaders: NonNegativeInt = 0
    # Batches that each loading process prepares ahead.
    prefetch: PositiveInt = 2
    # Samples a worker may find unreadable (named in the log and replaced) before it gives up.
    bad_samples: NonNegativeInt = 0
    # Each of several replicas trains on as many samples as there are, drawn with replacement (Breiman 1996).
    bootstrap: bool = False


class Validation(Section):
    # Exactly one of the two is in force; with neither, every epoch.
    every_epochs: PositiveInt | None = None
    every_steps: PositiveInt | None = None
    # Per worker; null: the training batch.
    batch_size: PositiveInt | None = None
    # Training batches from which batch-norm statistics are recomputed before each validation
    # (Goyal et al. 2017, figure 4); 0 keeps the running averages.
    batch_norm_batches: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        if self.every_epochs is not None and self.every_steps is not None:
            raise ValueError("give at most one of every_epochs and every_steps")
        return self


class Checkpoint(Section):
    every_steps: PositiveInt = 200
    keep_last: Annotated[int, Field(ge=2, strict=True)] = 3
    # Further checkpoints at every multiple of this many steps are kept for ever.
    keep_every_steps: PositiveInt | None = None


class Profile(Section):
    # Steps to skip, to warm up on, and to record.
    wait: NonNegativeInt = 5
    warmup: NonNegativeInt = 2
    active: PositiveInt = 3


class Logging(Section):
    every_steps: PositiveInt = 10
    tensorboard: bool = True
    profile: Profile | None = None
    # A worker this much slower than the median worker is named.
    straggler_ratio: Annotated[float, Field(gt=1)] = 1.3


class Recovery(Section):
    # Restarts without progress in between; a restart that got further does not count.
    max_restarts: NonNegativeInt = 3
    backoff_s: NonNegative = 1.0
    max_backoff_s: NonNegative = 60.0
    # A process whose pulse has stopped for this long is frozen.
    frozen_after_s: Positive = 5.0
    # A worker that stays in one phase for longer than this, and than 20 times its usual, is hung.
    hung_after_s: Positive = 30.0
    # From the first sign of life to the first step, and for a model that compiles.
    start_timeout_s: Positive = 600.0
    # What is left to workers between a request to stop and SIGKILL.
    grace_s: Positive = 30.0


class Faults(Section):
    """What to inject into the workers, to see what slow and mortal ones do to a run; in every mode."""

    # Seconds added to the time of every gradient, as if computing took longer.
    step_s: NonNegative = 0.0
    # Worker to factor: its gradients take so many times as long, by sleeping.
    slow: Annotated[
        dict[NonNegativeInt, Annotated[float, Field(ge=1, allow_inf_nan=False)]],
        Field(description="a section of worker: factor"),
    ] = Field(default={})
    # Random delays scale_s * exp(sigma * z) with standard normal z; null: none.
    lognormal_sigma: Positive | None = None
    # Their median.
    scale_s: Positive = 0.1
    # Gradients that a worker computes on average before it is killed; null: it is not.
    mean_lifetime: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    # Decides the random delays and lifetimes.
    seed: NonNegativeInt = 0


class Config(Section):
    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="a name of letters, digits, '.', '_' and '-'"
        ),
    ]
    # A built-in name, "package.module:attribute", or "path/to/file.py:attribute".
    task: str
    task_options: dict[str, Any] = Field(default={})
    # null: the task's own choice.
    model: Model | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True, description="a whole number of at least 0")] = 0
    parallel: Parallel = Parallel()
    train: Train
    optimizer: AnyOptimizer
    schedule: Schedule = Schedule()
    data: Data = Data()
    validation: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    logging: Logging = Logging()
    recovery: Recovery = Recovery()
    faults: Faults = Faults()
    # null: replicas, if there are several, know nothing of one another.
    codistill: Codistill | None = None
    # null: labels alone teach. dist-train distill fills it in.
    distill: Distill | None = None

    @property
    def data_parts(self) -> int:
        """How many disjoint parts of the training set there are, one for each replica; 1: all have all."""
        disjoint = self.codistill is not None and self.codistill.data == "disjoint"
        return self.parallel.replicas if disjoint else 1

    @property
    def draws_alike(self) -> bool:
        """Whether all replicas draw the same samples in the same order."""
        return self.codistill is not None and self.codistill.by_prediction

    @model_validator(mode="after")
    def _all_goes_together(self) -> Self:
        if found := contradictions(self):
            raise Contradictions(found)
        return self
