"""From measurements to the lines that are written down and shown, and to the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType

from dist_train.config.schema import Config
from dist_train.core.learner import Measurement
from dist_train.core.state import Counted
from dist_train.plan import Plan
from dist_train.rules.straggler import Streaks, straggler
from dist_train.watch.course import Course, Earlier, End, Standing, straggler_event
from dist_train.watch.logbook import Logbook
from dist_train.watch.records import StepTimes, TrainLine
from dist_train.watch.summary import Status


class Reporter:
    """Tells a logbook what one worker's training does."""

    def __init__(
        self,
        book: Logbook,
        config: Config,
        plan: Plan,
        counted: Counted,
        restarts: int,
        earlier: Earlier,
        clock: Callable[[], float] = time.monotonic,
        replica: int = 0,
    ) -> None:
        self._course = Course(book, config, plan.workers, restarts, earlier, clock, replica)
        self._replica = replica
        self._book = book
        self._straggler_ratio = config.logging.straggler_ratio
        self._train_size = plan.train_size
        self._counted = counted
        self._streaks = Streaks()
        self._samples = 0
        self._training_s = 0.0

    @property
    def has_validated(self) -> bool:
        return self._course.has_validated

    def measured(
        self, measured: Measurement, rate: float, extras: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Report the steps since the last measurement; ``rate`` is the learning rate of the last of them.

        ``extras`` are further figures, by name.
        """
        self._samples += measured.samples
        self._training_s += measured.seconds
        self._book.train(self._train_line(measured, rate, extras))
        slow = self._streaks.after(straggler(measured.times, self._straggler_ratio))
        if slow is not None:
            times = measured.times[slow.rank]
            self._book.event(straggler_event(slow, f"worker {slow.rank} is", times, self._counted.updates))

    def validated(self, metrics: Mapping[str, float], seconds: float) -> None:
        """Report a validation."""
        self._course.validated(self._standing, metrics, seconds)

    def finish(self, status: Status, run_dir: Path, weights: Path | None, resume: str | None = None) -> None:
        """Write and show the summary; ``resume`` is the command that continues an interrupted run."""
        samples_per_s = self._samples / self._training_s if self._training_s else 0.0
        self._course.finish(self._standing, samples_per_s, End(status, run_dir, weights, resume))

    @property
    def _standing(self) -> Standing:
        position = self._counted.position
        epoch = position.epoch + position.offset / self._train_size
        return Standing(self._counted.updates, self._counted.samples, epoch)

    def _train_line(self, measured: Measurement, rate: float, extras: Mapping[str, float]) -> TrainLine:
        at, times = self._standing, mean_times(measured)
        samples_per_s = measured.samples / max(measured.seconds, 1e-9)
        own = [worker.own for worker in measured.times]
        return TrainLine(
            step=at.step,
            samples=at.samples,
            epoch=at.epoch,
            wall_s=self._course.wall_s,
            loss=measured.loss,
            lr=rate,
            samples_per_s=samples_per_s,
            samples_per_s_per_worker=samples_per_s / self._course.workers,
            data_wait=times.data / max(times.total, 1e-9),
            times=times,
            memory_mb=measured.memory_mb,
            slowest_rank=own.index(max(own)) if len(own) > 1 else None,
            worker_times=tuple(measured.times) if len(own) > 1 else None,
            grad_norm=measured.gradient_norm,
            replica=self._replica,
            extras=dict(extras),
        )


def mean_times(measured: Measurement) -> StepTimes:
    """Return the mean over the workers of the seconds that a step spent in each phase."""
    workers = len(measured.times)
    phases = [phase.name for phase in fields(StepTimes)]
    return StepTimes(
        **{phase: sum(getattr(times, phase) for times in measured.times) / workers for phase in phases}
    )
