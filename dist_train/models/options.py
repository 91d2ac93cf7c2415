"""The options of the built-in models, checked without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from dist_train.config import shape
from dist_train.config.checking import show
from dist_train.config.section import Fraction, PositiveInt, Section
from dist_train.models.imports import suggest


class MLP(Section):
    hidden: tuple[PositiveInt, ...] = (128, 128)
    activation: Literal["relu", "gelu", "tanh"] = "relu"


class CifarResNet(Section):
    # 6n + 2 layers: 20, 32, 44, 56, 110.
    depth: Annotated[int, Field(ge=8, strict=True)] = 20
    width: PositiveInt = 16
    norm: Literal["batch", "group"] = "batch"
    zero_last_gamma: bool = True

    @model_validator(mode="after")
    def _whole_blocks(self) -> Self:
        if self.depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2 (20, 32, 44, ...), found {self.depth}")
        return self


class ResNet(Section):
    zero_last_gamma: bool = True


class GPT(Section):
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    width: PositiveInt = 128
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


OPTIONS: dict[str, type[Section]] = {
    "mlp": MLP,
    "cifar_resnet": CifarResNet,
    "resnet18": ResNet,
    "resnet50": ResNet,
    "gpt": GPT,
}


def option_problems(options: type[Section], given: Mapping[str, Any], key: str) -> list[str]:
    """Return one line for each thing wrong with ``given``, which stands under ``key``."""
    try:
        options.model_validate(dict(given))
    except ValidationError as error:
        found = (_line(detail, options, given, key) for detail in error.errors(include_url=False))
        return list(dict.fromkeys(found))
    return []


def _line(detail: ErrorDetails, options: type[Section], given: Mapping[str, Any], key: str) -> str:
    if not detail["loc"]:  # a check across several options
        return f"{key}: {detail['ctx']['error']}"
    name, known = str(detail["loc"][0]), shape.keys(options)
    if detail["type"] == "extra_forbidden":
        return f"{key}.{name}: unknown option; {suggest(name, known)}"
    if name not in given:
        return f"{key}.{name}: missing; give {shape.expected(known[name])}"
    return f"{key}.{name}: expected {shape.expected(known[name])}, found {show(given[name])}"
