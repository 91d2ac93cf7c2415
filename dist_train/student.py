"""A student: what a worker learns from runs that are done, beside the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dist_train import tasks
from dist_train.config import Config
from dist_train.config.schema import Data, Distill
from dist_train.core.data import made_alike, validation_batches, without_trouble
from dist_train.core.lessons import Lessons
from dist_train.core.seeds import generators_untouched, seed_all
from dist_train.core.state import placed_model
from dist_train.core.step import Numerics, outputs_of
from dist_train.couplings import Coupling
from dist_train.couplings.distillation import Distillation
from dist_train.delivered import Delivered, as_teacher, find_teachers
from dist_train.errors import ConfigError
from dist_train.evaluate.predictions import are_scores
from dist_train.evaluate.subject import models_of
from dist_train.exchange.collective import Collective
from dist_train.task import Task


@dataclass(frozen=True)
class Teacher:
    """A run that is done, and its ``models``: frozen, in evaluation mode."""

    delivered: Delivered
    models: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Pupil:
    """What is asked the same as the teachers: a model of ``task``, and samples to ask about."""

    task: Task
    model: nn.Module
    data: Dataset[Any]
    numerics: Numerics


class Student:
    """What a worker has to do with teachers that are done; nothing where there is no section distill."""

    def __init__(self, config: Config, collective: Collective) -> None:
        self._config = config
        self._collective = collective
        self._teachers: tuple[Teacher, ...] = ()
        self._lessons: Lessons | None = None

    def coupled(self, inside: Coupling, task: Task, device: torch.device) -> Coupling:
        """Add what is learnt from the teachers to what couples the workers; raises ConfigError."""
        terms = self._config.distill
        if terms is None:
            return inside
        self._teachers = load_teachers(self._config, device)
        self._lessons = Lessons(device)
        models = [model for teacher in self._teachers for model in teacher.models]
        return Distillation(inside, terms, models, outputs_of(task, device), self._lessons.agreed)

    def refuse_unfit(self, pupil: Pupil) -> None:
        """Raise ConfigError where a teacher does not predict what the student learns to."""
        if self._config.distill is not None:
            refuse_unfit(self._config, self._config.distill, self._teachers, pupil)

    def figures(self) -> dict[str, float]:
        """Return the mean agreement with the teachers since the last call; asked of all workers at once."""
        if self._lessons is None:
            return {}
        soft = self._lessons.of_all(self._collective)
        return {} if soft is None else {"soft_loss": soft}


def load_teachers(config: Config, device: torch.device) -> tuple[Teacher, ...]:
    """Load the models that the teachers delivered, frozen; the generators stay as they are.

    Raises ConfigError where a directory holds no run that is done, or its models cannot be made.
    """
    with generators_untouched(device):
        return tuple(_load(found, device) for found in find_teachers(config))


def _load(found: Delivered, device: torch.device) -> Teacher:
    try:
        _, models = models_of(found, device)
    except ConfigError as error:
        raise as_teacher(error) from error
    return Teacher(found, tuple(model.requires_grad_(False) for model in models))


def refuse_unfit(config: Config, terms: Distill, teachers: Sequence[Teacher], pupil: Pupil) -> None:
    """Ask the student and every teacher about one sample, and compare what they predict.

    Raises ConfigError where a teacher cannot be asked or has other classes than the student, and where
    predictions are no class scores and so have no probabilities to agree on.
    """
    numerics, outputs = pupil.numerics, outputs_of(pupil.task, pupil.numerics.device)
    batch = numerics.place(_one_sample(pupil.data, config.data))
    training = pupil.model.training
    with numerics.context():
        (own,) = outputs.by([pupil.model.eval()], batch)
        pupil.model.train(training)
        _refuse_no_scores(terms, own)
        for teacher in teachers:
            for model in teacher.models:
                (taught,) = _asked(teacher, partial(outputs.by, [model], batch))
                _refuse_other(teacher, taught, own)


def _one_sample(dataset: Dataset[Any], data: Data) -> Any:
    """Return a batch of the first sample, loaded here."""
    loader, _ = validation_batches(dataset, 0, 1, 1, data.model_copy(update={"loaders": 0}), pin=False)
    return next(iter(without_trouble(loader)))


def _refuse_no_scores(terms: Distill, own: Tensor) -> None:
    if terms.loss != "squared_error" and not are_scores(own):
        raise ConfigError(
            f"distill.loss: {terms.loss} compares the probabilities of classes, and the student's "
            f"predictions are no class scores but have shape {list(own.shape)}; set it to squared_error"
        )


def _asked(teacher: Teacher, ask: Callable[[], list[Tensor]]) -> list[Tensor]:
    try:
        return ask()
    except Exception as error:
        # A model of the user's own may fail in any way.
        raise ConfigError(
            f"distill.teachers: {teacher.delivered.run_dir}: its model cannot predict the student's samples: "
            f"{type(error).__name__}: {error}"
        ) from error


def _refuse_other(teacher: Teacher, taught: Tensor, own: Tensor) -> None:
    if taught.shape == own.shape:
        return
    if taught.shape[:-1] == own.shape[:-1]:
        found = f"{taught.shape[-1]} classes, and the student has {own.shape[-1]}"
    else:
        found = f"predictions of shape {list(taught.shape)}, and the student's have {list(own.shape)}"
    run_dir = teacher.delivered.run_dir
    raise ConfigError(f"distill.teachers: {run_dir}: {found}; give runs that predict what the student does")


def rehearse(config: Config) -> None:
    """Raise ConfigError where the teachers of a run to come are none for its student; trains nothing."""
    if config.distill is None:
        return
    device = torch.device("cpu")
    teachers = load_teachers(config, device)
    with generators_untouched(device):
        seed_all(config.seed)
        task = tasks.make(config)
        model = placed_model(task, config, device)
    data = made_alike(task.validation_data, config.seed, device)
    refuse_unfit(config, config.distill, teachers, Pupil(task, model, data, Numerics(device)))
