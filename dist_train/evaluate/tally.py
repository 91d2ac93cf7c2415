"""One run's measures, summed up over its validation set: each replica's, and those of their ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.core.evaluation import mean_of, measured
from dist_train.errors import ConfigError
from dist_train.evaluate.predictions import ensemble
from dist_train.evaluate.report import ENSEMBLE, LOSS, Measured
from dist_train.evaluate.subject import Subject


class Tally:
    """Measures the models of a run on one batch after the other; ``measured`` has the means so far."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._samples = 0
        self._first = subject.delivered.names[0]
        self._replicas = [_Sums() for _ in subject.models]
        self._ensemble = _Sums()
        # Whether the task's loss is one of the model's predictions alone, so that it can be had from others.
        self._of_predictions = True

    def add(self, batch: Any, size: int) -> dict[str, Any]:
        """Measure a batch of ``size`` samples; return predictions of the first model and of the ensemble."""
        subject = self._subject
        placed = subject.numerics.place(batch)
        self._samples += size
        found = []
        for model, sums in zip(subject.models, self._replicas, strict=True):
            means, predictions = self._witnessed(model, placed)
            sums.add(means, size)
            found.append(predictions)
        if len(found) == 1:
            return {self._first: found[0]}
        together = ensemble([tensor_of(predictions, subject) for predictions in found])
        self._ensemble.add(self._of_ensemble(together, placed), size)
        return {self._first: found[0], ENSEMBLE: together}

    def measured(self) -> Measured:
        """Return the means over all samples that were added."""
        means = self._ensemble.means(self._samples)
        if not self._of_predictions:
            means.pop(LOSS, None)
        return Measured(
            self._subject.delivered.run_dir,
            self._samples,
            tuple(sums.means(self._samples) for sums in self._replicas),
            means if len(self._replicas) > 1 else None,
            self._subject.delivered.names,
        )

    def _witnessed(self, model: nn.Module, batch: Any) -> tuple[Mapping[str, Tensor], Any]:
        """Measure a batch, and see whether its loss called the model once and returned what that gave."""
        outputs: list[Any] = []
        hook = model.register_forward_hook(lambda *call: outputs.append(call[-1]))
        try:
            means, predictions = measured(self._subject.task, model, batch, self._subject.numerics)
        finally:
            hook.remove()
        if len(outputs) != 1 or not _same(outputs[0], predictions):
            self._of_predictions = False
        return means, predictions

    def _of_ensemble(self, predictions: Tensor, batch: Any) -> dict[str, Tensor]:
        task, numerics = self._subject.task, self._subject.numerics
        if self._of_predictions:
            return measured(task, _Given(predictions), batch, numerics)[0]
        with numerics.context():
            metrics = task.metrics(predictions, batch)
        return {name: mean_of(value, numerics.device) for name, value in metrics.items()}


def tensor_of(predictions: Any, subject: Subject) -> Tensor:
    """Return a task's predictions; raises ConfigError where they are not one tensor."""
    if isinstance(predictions, Tensor):
        return predictions
    raise ConfigError(
        f"{subject.delivered.run_dir}: the predictions of task {subject.delivered.config.task} are a "
        f"{type(predictions).__name__}; have its loss return one tensor, so that they can be compared"
    )


class _Sums:
    """Measures summed over samples."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, means: Mapping[str, Tensor], size: int) -> None:
        for name, mean in means.items():
            total = mean * size
            self._totals[name] = self._totals[name] + total if name in self._totals else total

    def means(self, samples: int) -> dict[str, float]:
        return {name: float(total) / samples for name, total in self._totals.items()}


class _Given(nn.Module):
    """Stands in for a model: whatever it is asked, it predicts what it was given."""

    def __init__(self, predictions: Tensor) -> None:
        super().__init__()
        self._predictions = predictions

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        del inputs, named
        return self._predictions


def _same(output: Any, predictions: Any) -> bool:
    if output is predictions:
        return True
    both = isinstance(output, Tensor) and isinstance(predictions, Tensor)
    return both and torch.equal(output.double(), predictions.double())
