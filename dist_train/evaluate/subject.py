"""A run made ready to be measured: its task, its models with the weights delivered, its validation set."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import Dataset

from dist_train import tasks
from dist_train.config import Config
from dist_train.config.schema import Parallel
from dist_train.core.data import made_alike, size_of, validation_batches, without_trouble
from dist_train.core.seeds import seed_all
from dist_train.core.state import placed_model
from dist_train.core.step import Numerics
from dist_train.core.weights import load_snapshot, load_weights
from dist_train.delivered import Delivered
from dist_train.errors import ConfigError, TrainingError
from dist_train.rules.teaching import replica_seed
from dist_train.runtime.connect import choose_device, numerics_of
from dist_train.runtime.place import Place
from dist_train.task import Task

Made = TypeVar("Made")


@dataclass(frozen=True)
class Subject:
    """A run to be measured; ``models`` are its replicas, in order and in evaluation mode."""

    delivered: Delivered
    task: Task
    models: tuple[nn.Module, ...]
    data: Dataset[Any]
    numerics: Numerics

    @property
    def samples(self) -> int:
        return size_of(self.data)

    def batches(self, size: int) -> tuple[Generator[Any, None, None], list[int]]:
        """Return the validation set as batches of at most ``size`` samples, and the samples of each.

        They are not yet on the device. Whoever asks for them closes them: loading processes ignore
        requests to stop, and would outlast a failure.
        """
        pin = self.numerics.device.type == "cuda"
        loader, sizes = validation_batches(self.data, 0, 1, size, self.delivered.config.data, pin)
        return without_trouble(loader), sizes


def prepare(delivered: Delivered) -> Subject:
    """Make the task, the models and the validation set of a run as its workers did.

    Raises ConfigError, naming the run directory, where one of them cannot be made or does not fit.
    """
    run_dir, config = delivered.run_dir, delivered.config
    device = _device(config.parallel)
    numerics = numerics_of(config, device)
    task, models = models_of(delivered, device)
    data = _made(delivered, "validation data", lambda: made_alike(task.validation_data, config.seed, device))
    if not _made(delivered, "validation data", lambda: size_of(data)):
        raise ConfigError(f"{run_dir}: the validation set is empty; there is nothing to measure on")
    return Subject(delivered, task, models, data, numerics)


def models_of(delivered: Delivered, device: torch.device) -> tuple[Task, tuple[nn.Module, ...]]:
    """Make a run's task, and the models that it delivered, in order and in evaluation mode; seeds generators.

    Raises ConfigError, naming the run directory, where one of them cannot be made or does not fit.
    """
    _refuse_unusable(delivered)
    # In the order of a worker's start, on which what is drawn depends.
    seed_all(delivered.config.seed)
    task = _made(delivered, "task", lambda: tasks.make(delivered.config))
    models = tuple(
        _model(delivered, task, 0 if path.is_dir() else number, path, device)
        for number, path in enumerate(delivered.weights)
    )
    return task, models


def batch_size(config: Config) -> int:
    """Return how many samples a worker of the run validates at once."""
    size = config.validation.batch_size or config.train.batch_size
    if size is not None:
        return size
    assert config.parallel.global_batch is not None  # the configuration gives exactly one of the two
    workers = 1 if config.parallel.workers == "auto" else config.parallel.workers
    return -(-config.parallel.global_batch // (workers * config.train.accumulate))


def _refuse_unusable(delivered: Delivered) -> None:
    config = delivered.config
    if problems := tasks.check(config):
        names = [config.task, "" if config.model is None else config.model.name]
        moved = any(_is_missing_file(name) for name in names)
        hint = "; its path is relative to the folder that the run was started in" if moved else ""
        raise ConfigError([f"{delivered.run_dir}: {problem}{hint}" for problem in problems])


def _is_missing_file(name: str) -> bool:
    file = name.rpartition(":")[0]
    return file.endswith(".py") and not Path(file).expanduser().exists()


def _model(delivered: Delivered, task: Task, replica: int, weights: Path, device: torch.device) -> nn.Module:
    """Make the model of one replica; what its weights do not hold, such as buffers, comes from its seed."""
    if replica:
        seed_all(replica_seed(delivered.config.seed, replica))
    model = _made(delivered, "model", lambda: placed_model(task, delivered.config, device))
    if weights.is_dir():
        load_snapshot(model, weights)
    else:
        load_weights(model, weights)
    return model.eval()


def _device(parallel: Parallel) -> torch.device:
    """Return the run's kind of device; without a GPU here, the CPU will do."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return choose_device(Place(), parallel)


def _made(delivered: Delivered, what: str, make: Callable[[], Made]) -> Made:
    try:
        return make()
    except ConfigError as error:
        raise ConfigError([f"{delivered.run_dir}: {problem}" for problem in error.problems]) from error
    except TrainingError as error:
        raise ConfigError(f"{delivered.run_dir}: {error}") from error
    except Exception as error:
        # A task of the user's own may fail in any way.
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{delivered.run_dir}: no {what} of task {delivered.config.task}: {reason}"
        ) from error
