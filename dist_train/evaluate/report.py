"""What was measured, as data, as a table and as the object that --json prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.layout import replica_folder
from dist_train.watch.figures import GAP, measure, metric, one_line

LOSS, ENSEMBLE, NOTHING = "loss", "ensemble", "-"


@dataclass(frozen=True)
class Measured:
    """A run's replicas and their ensemble: loss and metrics by name, over ``samples`` validation samples.

    ``names`` says what each model is called. ``ensemble`` is None for a run with one replica; it has no loss
    where a task's loss cannot be had from predictions.
    """

    run_dir: Path
    samples: int
    replicas: tuple[Mapping[str, float], ...]
    ensemble: Mapping[str, float] | None = None
    names: tuple[str, ...] = ()

    @property
    def models(self) -> list[tuple[str, Mapping[str, float]]]:
        """Each replica, or each checkpoint, by its name."""
        names = self.names or [replica_folder(number) for number in range(len(self.replicas))]
        return list(zip(names, self.replicas, strict=True))


@dataclass(frozen=True)
class Churn:
    """How far the predictions of two runs are apart (Anil et al. 2018).

    ``between`` says what of each run counts: replica_0 or ensemble. ``mean_abs_difference`` is the mean over
    samples and classes of the absolute difference of the predicted probabilities, and ``changed_labels`` the
    share of predicted labels that differ, None where the task predicts none.
    """

    between: str
    mean_abs_difference: float
    changed_labels: float | None


@dataclass(frozen=True)
class Report:
    """All that was measured; ``churn`` is there for exactly two runs."""

    runs: tuple[Measured, ...]
    churn: tuple[Churn, ...] = ()

    def record(self) -> dict[str, Any]:
        """Make the object that --json prints."""
        runs = [_record(run) for run in self.runs]
        churn = [
            {
                "between": each.between,
                "mean_abs_difference": each.mean_abs_difference,
                "changed_labels": each.changed_labels,
            }
            for each in self.churn
        ]
        return {"runs": runs, "churn": churn} if churn else {"runs": runs}

    def text(self) -> str:
        """Make the tables for a person."""
        blocks = [_aligned(self._measures())]
        if any(run.ensemble is not None and LOSS not in run.ensemble for run in self.runs):
            blocks.append(
                "The ensemble has no loss: that of the task is more than one call of the model on the batch."
            )
        if self.churn:
            blocks.append(_aligned(self._churns()))
        return "\n\n".join(blocks)

    def _measures(self) -> list[list[str]]:
        found = [(run, name, measures) for run in self.runs for name, measures in _models(run)]
        names = list(dict.fromkeys(name for _, _, measures in found for name in measures))
        rows = [["run", "model", "samples", *names]]
        for run, model, measures in found:
            cells = [metric(name, measures[name])[1] if name in measures else NOTHING for name in names]
            rows.append([one_line(str(run.run_dir)), model, f"{run.samples:,}", *cells])
        return rows

    def _churns(self) -> list[list[str]]:
        rows = [["churn", "mean abs difference", "changed labels"]]
        for each in self.churn:
            share = each.changed_labels
            labels = NOTHING if share is None else f"{share:.2%}"
            rows.append([each.between, measure(each.mean_abs_difference), labels])
        return rows


def _models(run: Measured) -> list[tuple[str, Mapping[str, float]]]:
    together = [] if run.ensemble is None else [(ENSEMBLE, run.ensemble)]
    return run.models + together


def _record(run: Measured) -> dict[str, Any]:
    replicas = [
        {"replica": number, "model": name, "val": dict(measures)}
        for number, (name, measures) in enumerate(run.models)
    ]
    found = {"run": str(run.run_dir), "samples": run.samples, "replicas": replicas}
    return found if run.ensemble is None else found | {ENSEMBLE: {"val": dict(run.ensemble)}}


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows in columns: texts to the left, figures, from the first one on, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = 2 if rows[0][0] == "run" else 1
    lines = (
        GAP.join(
            f"{cell:<{width}}" if number < texts else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
