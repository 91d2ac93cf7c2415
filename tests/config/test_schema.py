"""What the schema itself refuses: values out of bounds and keys that do not go together."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from dist_train.config.schema import (
    LARS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    AnyDecay,
    AnyOptimizer,
    AnyWarmup,
    Checkpoint,
    Config,
    ConstantWarmup,
    CosineRestarts,
    GradualWarmup,
    Logging,
    Model,
    NoWarmup,
    OneCycle,
    Parallel,
    RMSProp,
    Schedule,
    Span,
    StepDecay,
    Train,
    Validation,
)

UNITS = ["epochs", "steps", "samples"]
ONE_UNIT = "give exactly one of epochs, steps, samples"


def config(**changes: Any) -> Config:
    base = {"name": "x", "task": "t", "train": {"epochs": 1, "batch_size": 2}, "optimizer": SGD(lr=1)}
    return Config.model_validate({**base, **changes})


@pytest.mark.parametrize("section", [Span, Train, GradualWarmup, ConstantWarmup])
class TestLength:
    @pytest.mark.parametrize("unit", UNITS)
    def test_one_unit_is_enough(self, section: type[Any], unit: str) -> None:
        assert getattr(section(**{unit: 3}), unit) == 3

    def test_no_unit_is_refused(self, section: type[Any]) -> None:
        with pytest.raises(ValidationError, match=rf"{ONE_UNIT} \(found none\)"):
            section()

    @pytest.mark.parametrize(
        ("first", "second"), [("epochs", "steps"), ("steps", "samples"), ("epochs", "samples")]
    )
    def test_two_units_are_refused(self, section: type[Any], first: str, second: str) -> None:
        with pytest.raises(ValidationError, match=rf"{ONE_UNIT} \(found {first} and {second}\)"):
            section(**{first: 1, second: 1})

    @pytest.mark.parametrize("length", [0, -1, float("nan"), float("inf")])
    @pytest.mark.parametrize("unit", UNITS)
    def test_a_length_is_finite_and_above_zero(self, section: type[Any], unit: str, length: float) -> None:
        with pytest.raises(ValidationError):
            section(**{unit: length})

    def test_only_epochs_have_fractions(self, section: type[Any]) -> None:
        assert section(epochs=0.5).epochs == 0.5
        with pytest.raises(ValidationError):
            section(steps=0.5)


def test_the_length_of_training_is_its_span() -> None:
    assert Train(samples=5).length == Span(samples=5)


def test_the_batch_is_given_in_exactly_one_way() -> None:
    message = re.escape("give exactly one of train.batch_size (per worker) and parallel.global_batch")
    config(train={"epochs": 1}, parallel={"global_batch": 4})
    with pytest.raises(ValidationError, match=message):
        config(train={"epochs": 1})
    with pytest.raises(ValidationError, match=message):
        config(parallel={"global_batch": 4})


def test_validation_has_at_most_one_interval() -> None:
    assert Validation().every_epochs is None
    with pytest.raises(ValidationError, match="give at most one of every_epochs and every_steps"):
        Validation(every_epochs=1, every_steps=1)


def test_nesterov_needs_momentum() -> None:
    assert SGD(lr=1, nesterov=True).momentum == 0.9
    with pytest.raises(ValidationError, match="nesterov needs a momentum above 0"):
        SGD(lr=1, momentum=0, nesterov=True)


@pytest.mark.parametrize("milestones", [[2, 1], [1, 1], [1, 3, 2]])
def test_milestones_must_rise(milestones: list[float]) -> None:
    with pytest.raises(ValidationError, match="milestones must rise"):
        StepDecay(milestones=tuple(milestones))


def test_cosine_restarts_are_given_by_number_or_by_first_length() -> None:
    CosineRestarts(cycles=3)
    CosineRestarts(first_epochs=3)
    for wrong in ({}, {"cycles": 3, "first_epochs": 3}):
        with pytest.raises(ValidationError, match=r"give exactly one of cycles .* and first_epochs"):
            CosineRestarts(**wrong)


def test_one_cycle_is_its_own_warmup() -> None:
    Schedule(decay=OneCycle(), warmup=NoWarmup())
    with pytest.raises(ValidationError, match=r"set warmup\.kind to none"):
        Schedule(decay=OneCycle(), warmup=GradualWarmup(epochs=1))


@pytest.mark.parametrize("name", ["digits-sync", "a", "7", "A.b_c-9"])
def test_a_name_can_be_a_directory(name: str) -> None:
    assert config(name=name).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", ".a", "a/b", "a b", "a\n", "é"])
def test_a_name_that_is_no_safe_directory_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        config(name=name)


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        ("sgd", SGD),
        ("adagrad", Adagrad),
        ("rmsprop", RMSProp),
        ("adam", Adam),
        ("adamw", AdamW),
        ("lars", LARS),
    ],
)
def test_the_name_of_an_optimizer_chooses_it(kind: str, section: type[Any]) -> None:
    optimizer = TypeAdapter(AnyOptimizer).validate_python({"name": kind, "lr": 0.1})
    assert type(optimizer) is section


@pytest.mark.parametrize("annotation", [AnyOptimizer, AnyWarmup, AnyDecay])
def test_a_variant_that_does_not_exist_is_refused(annotation: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(annotation).validate_python({"name": "none of them", "kind": "none of them", "lr": 1})


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (SGD, {"lr": 0}),
        (SGD, {"lr": -0.1}),
        (SGD, {"lr": float("inf")}),
        (SGD, {"lr": 1, "momentum": 1}),
        (SGD, {"lr": 1, "momentum": -0.1}),
        (SGD, {"lr": 1, "weight_decay": -1}),
        (Adam, {"lr": 1, "betas": [0.9]}),
        (Adam, {"lr": 1, "betas": [0.9, 1.0]}),
        (Adam, {"lr": 1, "eps": 0}),
        (LARS, {"lr": 1, "trust": 0}),
        (StepDecay, {"milestones": [0]}),
        (StepDecay, {"milestones": [1], "gamma": 0}),
        (OneCycle, {"triangle": 0}),
        (OneCycle, {"triangle": 1.1}),
        (OneCycle, {"start_factor": 1}),
        (CosineRestarts, {"cycles": 2, "factor": 0.5}),
        (Parallel, {"workers": 0}),
        (Parallel, {"workers": "many"}),
        (Parallel, {"global_batch": 0}),
        (Checkpoint, {"keep_last": 1}),
        (Logging, {"straggler_ratio": 1}),
        (Schedule, {"base_batch": 0}),
        (Train, {"epochs": 1, "accumulate": 0}),
        (Train, {"epochs": 1, "clip_norm": 0}),
    ],
)
def test_a_value_out_of_bounds_is_refused(section: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(values)


@pytest.mark.parametrize("section", [Config, Train, Parallel, SGD, NoWarmup, Span, Schedule])
def test_an_unknown_key_is_refused(section: type[Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        section.model_validate({"unheard_of": 1})


def test_a_model_passes_further_keys_on() -> None:
    assert Model(name="mlp", widths=[1, 2]).options == {"widths": [1, 2]}
    assert Model(name="mlp").options == {}


def test_a_config_does_not_change_after_reading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().seed = 1  # type: ignore[misc]


def test_the_defaults_are_plain_synchronous_training() -> None:
    found = config()
    assert (found.parallel.mode, found.parallel.replicas, found.parallel.group_size) == ("sync", 1, 1)
    assert found.schedule.warmup == NoWarmup()
