"""From measurements to the lines that are written down and shown, and to the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isnan
from pathlib import Path
from typing import Any

from dist_train.config.schema import Config
from dist_train.core.learner import Measurement
from dist_train.core.state import Counted
from dist_train.plan import Plan
from dist_train.rules.straggler import Straggler, Streaks, straggler
from dist_train.watch.logbook import Logbook
from dist_train.watch.records import StepTimes, TrainLine, ValLine
from dist_train.watch.summary import Status, Summary

MILLISECONDS = 1000


@dataclass(frozen=True)
class Earlier:
    """What a resumed run has behind it: its time, and its validation of lowest loss."""

    wall_s: float = 0.0
    best: Mapping[str, float] | None = None


class Reporter:
    """Tells a logbook what one worker's training does."""

    def __init__(
        self, book: Logbook, config: Config, plan: Plan, counted: Counted, restarts: int, earlier: Earlier
    ) -> None:
        self._book = book
        self._config = config
        self._plan = plan
        self._counted = counted
        self._restarts = restarts
        self._start = time.monotonic() - earlier.wall_s
        self._streaks = Streaks()
        self._samples = 0
        self._training_s = 0.0
        self._metrics: dict[str, float] = {}
        self._best: dict[str, float] | None = dict(earlier.best) if earlier.best else None

    @property
    def has_validated(self) -> bool:
        return bool(self._metrics)

    def measured(self, measured: Measurement, rate: float) -> None:
        """Report the steps since the last measurement; ``rate`` is the learning rate of the last of them."""
        self._samples += measured.samples
        self._training_s += measured.seconds
        self._book.train(self._train_line(measured, rate))
        slow = self._streaks.after(straggler(measured.times, self._config.logging.straggler_ratio))
        if slow is not None:
            self._book.event(straggler_event(slow, measured, self._counted.updates))

    def validated(self, metrics: Mapping[str, float], seconds: float) -> None:
        """Report a validation; the best is the one of the lowest loss."""
        self._metrics = dict(metrics)
        if self._best is None or isnan(self._best["loss"]) or metrics["loss"] < self._best["loss"]:
            self._best = {"step": self._counted.updates, **metrics}
        line = ValLine(
            step=self._counted.updates,
            samples=self._counted.samples,
            epoch=self._epoch,
            wall_s=self._wall_s,
            loss=metrics["loss"],
            metrics={name: value for name, value in metrics.items() if name != "loss"},
            seconds=seconds,
        )
        self._book.validation(line)

    def finish(self, status: Status, run_dir: Path, weights: Path | None, resume: str | None = None) -> None:
        """Write and show the summary; ``resume`` is the command that continues an interrupted run."""
        summary = Summary(
            status=status,
            mode=self._config.parallel.mode,
            workers=self._plan.workers,
            replicas=self._config.parallel.replicas,
            steps=self._counted.updates,
            samples=self._counted.samples,
            wall_s=round(self._wall_s, 3),
            samples_per_s=round(self._samples / self._training_s, 3) if self._training_s else 0.0,
            restarts=self._restarts,
            val=self._metrics,
            best=self._best,
            run_dir=str(run_dir),
            model=None if weights is None else str(weights),
        )
        self._book.finish(summary.record(), resume)

    @property
    def _wall_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def _epoch(self) -> float:
        return self._counted.position.epoch + self._counted.position.offset / self._plan.train_size

    def _train_line(self, measured: Measurement, rate: float) -> TrainLine:
        times = mean_times(measured)
        samples_per_s = measured.samples / max(measured.seconds, 1e-9)
        own = [worker.own for worker in measured.times]
        return TrainLine(
            step=self._counted.updates,
            samples=self._counted.samples,
            epoch=self._epoch,
            wall_s=self._wall_s,
            loss=measured.loss,
            lr=rate,
            samples_per_s=samples_per_s,
            samples_per_s_per_worker=samples_per_s / self._plan.workers,
            data_wait=times.data / max(times.total, 1e-9),
            times=times,
            memory_mb=measured.memory_mb,
            slowest_rank=own.index(max(own)) if len(own) > 1 else None,
            worker_times=tuple(measured.times) if len(own) > 1 else None,
            grad_norm=measured.gradient_norm,
        )


def mean_times(measured: Measurement) -> StepTimes:
    """Return the mean over the workers of the seconds that a step spent in each phase."""
    workers = len(measured.times)
    phases = [phase.name for phase in fields(StepTimes)]
    return StepTimes(
        **{phase: sum(getattr(times, phase) for times in measured.times) / workers for phase in phases}
    )


def straggler_event(slow: Straggler, measured: Measurement, step: int) -> dict[str, Any]:
    """Name the worker that the others have been waiting for."""
    seconds = getattr(measured.times[slow.rank], slow.phase)
    return {
        "event": "straggler",
        "step": step,
        "rank": slow.rank,
        "phase": slow.phase,
        "ratio": round(slow.ratio, 2),
        "warning": f"worker {slow.rank} is {slow.ratio:.1f} times slower than the others, "
        f"most of it in {slow.phase} ({MILLISECONDS * seconds:.1f} ms per step)",
    }
