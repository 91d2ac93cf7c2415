"""A task of the user's own: a class or function that makes it, or the task itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from dist_train.config.schema import Config
from dist_train.errors import ConfigError
from dist_train.models.imports import argument_problems, resolve

if TYPE_CHECKING:
    from dist_train.task import Task


def check(config: Config) -> list[str]:
    """Import the task and return what is wrong with it and its options, one line each; nothing is made."""
    try:
        found = resolve(config.task)
    except ConfigError as error:
        return [f"task: {problem}" for problem in error.problems]
    if not _makes_tasks(found):
        return _lacking(config.task, found) + _superfluous(config)
    lacking = _lacking(config.task, found) if inspect.isclass(found) else []
    return lacking + _argument_problems(config, found)


def make(config: Config) -> Task:
    """Make the task. Raises ConfigError, with all problems, where it is not one."""
    if problems := check(config):
        raise ConfigError(problems)
    found = resolve(config.task)
    if not _makes_tasks(found):
        return cast("Task", found)
    made = found(**_arguments(config))
    if problems := _lacking(config.task, made):
        raise ConfigError(problems)
    return cast("Task", made)


def _makes_tasks(found: object) -> bool:
    return inspect.isclass(found) or inspect.isroutine(found) or isinstance(found, functools.partial)


def _lacking(name: str, found: object) -> list[str]:
    from dist_train.task import METHODS

    abstract: frozenset[str] = getattr(found, "__abstractmethods__", frozenset())
    missing = [m for m in METHODS if not callable(getattr(found, m, None)) or m in abstract]
    if not missing:
        return []
    return [f"task: {name} lacks the method{'s' * (len(missing) > 1)} {', '.join(missing)}"]


def _superfluous(config: Config) -> list[str]:
    lines = []
    if config.task_options:
        lines.append(f"task_options: {config.task} is already made and takes no options; remove them")
    if config.model is not None:
        lines.append(_makes_its_own_model(config.task))
    return lines


def _argument_problems(config: Config, maker: Callable[..., Any]) -> list[str]:
    if config.model is not None and not _takes_model(maker):
        return [_makes_its_own_model(config.task), *_option_problems(maker, config.task_options)]
    if config.model is not None and "model" in config.task_options:
        return ["task_options.model: the key model is given too; keep one of them"]
    return _option_problems(maker, _arguments(config))


def _option_problems(maker: Callable[..., Any], given: dict[str, Any]) -> list[str]:
    return [f"task_options.{name}: {problem}" for name, problem in argument_problems(maker, given)]


def _arguments(config: Config) -> dict[str, Any]:
    chosen = {} if config.model is None else {"model": config.model}
    return config.task_options | chosen


def _takes_model(maker: Callable[..., Any]) -> bool:
    return not any(name == "model" for name, _ in argument_problems(maker, {"model": None}))


def _makes_its_own_model(name: str) -> str:
    return f"model: task {name} makes its own model; remove the key model"
