"""Runs that are done, measured by the models that they delivered, and how far two of them are apart.

Two runs are measured in step, so that no more than one batch of predictions is ever held: those of a
language model for a whole validation set would fit in no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_train import delivered
from dist_train.core.seeds import generators_untouched
from dist_train.delivered import Delivered
from dist_train.errors import ConfigError
from dist_train.evaluate.batches import each_batch
from dist_train.evaluate.predictions import Apart, apart
from dist_train.evaluate.report import Churn, Measured, Report
from dist_train.evaluate.snapshots import find_checkpoints
from dist_train.evaluate.subject import Subject, prepare
from dist_train.evaluate.tally import Tally, tensor_of

__all__ = ["evaluate"]


def evaluate(run_dirs: Sequence[Path], steps: Sequence[int] = ()) -> Report:
    """Measure what the runs delivered on their validation sets, in this process.

    With ``steps``, their checkpoints after these steps are measured in place of what they delivered (snapshot
    ensembles, Huang et al. 2017). For two runs the churn between them is measured too. Raises ConfigError
    where a directory holds no run that is done, where its weights do not fit its model, and for two runs
    that cannot be compared.
    """
    found = [find_checkpoints(run_dir, steps) if steps else delivered.find(run_dir) for run_dir in run_dirs]
    with generators_untouched():
        if len(found) == 2:
            return _two(*found)
        return Report(tuple(_one(each) for each in found))


def _one(found: Delivered) -> Measured:
    subject = prepare(found)
    tally = Tally(subject)
    each_batch([subject], lambda batches, size: tally.add(batches[0], size))
    return tally.measured()


def _two(first: Delivered, second: Delivered) -> Report:
    delivered.refuse_other_task(first, second)
    pair = _Pair(prepare(first), prepare(second))
    each_batch(pair.subjects, pair.add)
    return pair.report()


class _Pair:
    """Two runs that are measured in step; what is in both, replica 0 and maybe an ensemble, is compared."""

    def __init__(self, first: Subject, second: Subject) -> None:
        self.subjects = (first, second)
        self._tallies = (Tally(first), Tally(second))
        self._apart: dict[str, Apart] = {}

    def add(self, batches: Sequence[Any], size: int) -> None:
        first, second = (tally.add(batch, size) for tally, batch in zip(self._tallies, batches, strict=True))
        for name in (each for each in first if each in second):
            now = self._compared(first[name], second[name])
            self._apart[name] = self._apart[name] + now if name in self._apart else now

    def report(self) -> Report:
        churn = (
            Churn(name, found.mean_abs_difference, found.changed_labels)
            for name, found in self._apart.items()
        )
        return Report(tuple(tally.measured() for tally in self._tallies), tuple(churn))

    def _compared(self, *predictions: Any) -> Apart:
        first, second = map(tensor_of, predictions, self.subjects)
        if first.shape != second.shape:
            here, there = (subject.delivered.run_dir for subject in reversed(self.subjects))
            raise ConfigError(
                f"{here}: predictions of shape {list(second.shape)}, and {there} has {list(first.shape)}; "
                "two runs are compared class by class: evaluate these each by itself"
            )
        return apart(first, second.to(first.device))
