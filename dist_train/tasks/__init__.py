"""What can be trained: the built-in tasks by name, and the user's own by import path.

Importing this, and checking a built-in task, does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from dist_train import models
from dist_train.config.schema import Config
from dist_train.errors import ConfigError
from dist_train.models.imports import is_import_path, resolve, suggest
from dist_train.models.options import option_problems
from dist_train.tasks import own
from dist_train.tasks.options import OPTIONS, Options

if TYPE_CHECKING:
    from dist_train.task import Task

BUILT_IN: dict[str, str] = {
    "digits": "dist_train.tasks.digits:Digits",
    "text": "dist_train.tasks.text:Text",
    "images": "dist_train.tasks.images:Images",
    "cifar10": "dist_train.tasks.cifar10:Cifar10",
    "synthetic": "dist_train.tasks.synthetic:Synthetic",
}


def check(config: Config) -> list[str]:
    """Return everything wrong with the run's task, its options, its data and its model, one line each.

    Reads no more than folders and file sizes. A task or model of the user's own is imported.
    """
    if is_import_path(config.task):
        return own.check(config)
    if problems := _option_problems(config):
        return problems
    options = OPTIONS[config.task].model_validate(config.task_options)
    of_model = [] if config.model is None else models.check(config.model, options.models)
    return _data_problems(options) + of_model


def check_names(config: Config) -> list[str]:
    """Return what of ``check`` is wrong on every machine alike, wherever the data and the user's code are."""
    if is_import_path(config.task):
        return []
    if problems := _option_problems(config):
        return problems
    if config.model is None or is_import_path(config.model.name):
        return []
    options = OPTIONS[config.task].model_validate(config.task_options)
    return models.check(config.model, options.models)


def make(config: Config) -> Task:
    """Make the run's task. Raises ConfigError where its name, its options or what it is cannot be used."""
    if is_import_path(config.task):
        return own.make(config)
    if problems := _option_problems(config):
        raise ConfigError(problems)
    options = OPTIONS[config.task].model_validate(config.task_options)
    return cast("Task", resolve(BUILT_IN[config.task])(**dict(options), model=config.model))


def _data_problems(options: Options) -> list[str]:
    try:
        return options.problems()
    except OSError as error:
        return [f"task_options: {error.filename}: {error.strerror}"]


def _option_problems(config: Config) -> list[str]:
    if config.task not in BUILT_IN:
        path = "or give package.module:attribute or path/to/file.py:attribute"
        return [f"task: unknown task {config.task!r}; {suggest(config.task, BUILT_IN)} ({path})"]
    return option_problems(OPTIONS[config.task], config.task_options, "task_options")
