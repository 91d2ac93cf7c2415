"""What --dry-run prints: the resolved configuration, its arithmetic, and who does what."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from dist_train import tasks
from dist_train.config import Config, dump_config
from dist_train.config.schema import Parallel, Server
from dist_train.core.data import size_of
from dist_train.core.flat import Layout
from dist_train.core.shard import parts
from dist_train.errors import ConfigError
from dist_train.optimizers.outer import server_optimizer
from dist_train.plan import groups, make_plan, own_size
from dist_train.student import rehearse
from dist_train.watch.opening import arithmetic

# Beyond so many groups, only the first and the last are printed.
GROUPS_SHOWN = 8
# Of one parameter: float32.
BYTES = 4

Found = TypeVar("Found")


def describe(config: Config) -> str:
    """Return the configuration, whose workers are counted, as YAML, and the arithmetic as its comments.

    Raises ConfigError where the task's data or model cannot be made, the model not be cut into the shards,
    or a student not learn from its teachers.
    """
    workers = int(config.parallel.workers)
    train_size = _of_task(config, "training data", lambda: size_of(tasks.make(config).train_data()))
    rehearse(config)
    plan = make_plan(config, workers, own_size(config, train_size))
    rows = arithmetic(config, plan)
    if config.parallel.has_server:
        model = _of_task(config, "model", lambda: _model(config))
        _refuse_too_many_shards(config, model)
        rows = rows | server_rows(config.parallel.server, _parameters(model))
    rows = rows | group_rows(config.parallel, workers)
    width = max(map(len, rows))
    comments = [f"# {label:<{width}}  {text}" for label, text in rows.items()]
    return "\n".join([dump_config(config).rstrip(), "", *comments])


def group_rows(parallel: Parallel, workers: int) -> dict[str, str]:
    """Say who is in which group."""
    rows = {f"group {number}": f"workers {ranks}" for number, ranks in enumerate(groups(parallel, workers))}
    if len(rows) <= GROUPS_SHOWN:
        return rows
    first, *_, last = rows
    return {first: rows[first], "...": f"{len(rows)} groups in all", last: rows[last]}


def server_rows(server: Server, parameters: int) -> dict[str, str]:
    """Say what the shards of a parameter server hold of the model's trainable ``parameters``."""
    shards = f"{server.shards} shard{'s' if server.shards > 1 else ''}"
    copies = f", {server.copies} copies of each" if server.copies > 1 else ""
    size = parameters * BYTES / server.shards / 2**20
    return {"server": f"{shards} of {size:.3g} MB of parameters{copies}; {parameters:,} parameters in all"}


def _model(config: Config) -> nn.Module:
    return tasks.make(config).model()


def _refuse_too_many_shards(config: Config, model: nn.Module) -> None:
    outer = config.parallel.outer_in_force
    settings = config.optimizer if outer is None else server_optimizer(outer)
    parts(Layout.of(model, config.optimizer), config.parallel.server.shards, settings)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _of_task(config: Config, what: str, make: Callable[[], Found]) -> Found:
    try:
        return make()
    except ConfigError:
        raise
    except Exception as error:
        # A task of the user's own may fail in any way.
        raise ConfigError(f"task {config.task}: no {what}: {type(error).__name__}: {error}") from error
