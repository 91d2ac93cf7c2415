"""The built-in models by name, and the user's own by import path. Importing this does not import torch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dist_train.config.schema import Model
from dist_train.errors import ConfigError
from dist_train.models.imports import argument_problems, is_import_path, resolve, suggest
from dist_train.models.options import OPTIONS, option_problems

if TYPE_CHECKING:
    from torch import nn

BUILT_IN: dict[str, str] = {
    "mlp": "dist_train.models.mlp:MLP",
    "cifar_resnet": "dist_train.models.cifar_resnet:CifarResNet",
    "resnet18": "dist_train.models.resnet:resnet18",
    "resnet50": "dist_train.models.resnet:resnet50",
    "gpt": "dist_train.models.gpt:GPT",
}


def check(model: Model, fitting: Iterable[str] = tuple(BUILT_IN)) -> list[str]:
    """Return what is wrong with ``model``, one line each; ``fitting`` names the built-in models allowed.

    Only a model of the user's own is imported (and torch, most likely, with it).
    """
    if is_import_path(model.name):
        return _check_own(model)
    if model.name not in BUILT_IN:
        return [f"model.name: unknown model {model.name!r}; {suggest(model.name, fitting)}"]
    if model.name not in set(fitting):
        return [f"model.name: {model.name} does not fit this task; choose one of {', '.join(fitting)}"]
    return option_problems(OPTIONS[model.name], model.options, "model")


def build(name: str, options: Mapping[str, Any], **shape: object) -> nn.Module:
    """Make the model ``name`` with its ``options``.

    A built-in model also gets those of the ``shape`` keywords that its constructor names, for instance
    ``inputs``, ``channels``, ``classes`` or ``context``; a model of the user's own gets its options alone.
    Raises ConfigError for an unknown name, for wrong options, and for a shape that does not suit it.
    """
    model = Model(name=name, **options)
    if problems := check(model):
        raise ConfigError(problems)
    if is_import_path(name):
        return _module(name, resolve(name)(**options))
    target = resolve(BUILT_IN[name])
    known = inspect.signature(target).parameters
    arguments = {key: value for key, value in shape.items() if key in known} | _values(model)
    if missing := argument_problems(target, arguments):
        needs = ", ".join(argument for argument, _ in missing)
        raise ConfigError(f"model.name: {name} does not fit this task, which does not tell its {needs}")
    return _module(name, target(**arguments))


def _values(model: Model) -> dict[str, Any]:
    return OPTIONS[model.name].model_validate(model.options).model_dump(exclude_unset=True)


def _check_own(model: Model) -> list[str]:
    try:
        target = resolve(model.name)
    except ConfigError as error:
        return [f"model.name: {problem}" for problem in error.problems]
    if not callable(target):
        return [f"model.name: {model.name} is not callable; give a class or a function that makes the model"]
    return [f"model.{name}: {problem}" for name, problem in argument_problems(target, model.options)]


def _module(name: str, made: object) -> nn.Module:
    from torch import nn

    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise ConfigError(f"model.name: {name} made a {kind}; it must make a torch.nn.Module")
    return made
