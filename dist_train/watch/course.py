"""The course of a run, in every mode: its clock, its validations, and its summary at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

from dist_train.config.schema import Config
from dist_train.rules.straggler import StepTimes, Straggler
from dist_train.watch.logbook import Logbook
from dist_train.watch.records import ValLine
from dist_train.watch.summary import Status, Summary

MILLISECONDS = 1000


@dataclass(frozen=True)
class Earlier:
    """What a resumed run has behind it: its time, and its validation of lowest loss."""

    wall_s: float = 0.0
    best: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Standing:
    """How far training is: updates and samples so far, and the same as a number of passes over the data."""

    step: int
    samples: int
    epoch: float


@dataclass(frozen=True)
class End:
    """How a run ended: its status, where its results lie, and ``resume``, the command that continues it.

    ``extras`` are the further keys of a mode in summary.json.
    """

    status: Status
    run_dir: Path
    weights: Path | None
    resume: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


class Course:
    """Tells a logbook what is the same in every mode; ``clock`` gives seconds."""

    def __init__(
        self,
        book: Logbook,
        config: Config,
        workers: int,
        restarts: int,
        earlier: Earlier,
        clock: Callable[[], float] = time.monotonic,
        replica: int = 0,
    ) -> None:
        self.replica = replica
        self.book = book
        self.workers = workers
        self._config = config
        self._restarts = restarts
        self._clock = clock
        self._start = clock() - earlier.wall_s
        self._metrics: dict[str, float] = {}
        self._best: dict[str, float] | None = dict(earlier.best) if earlier.best else None

    @property
    def wall_s(self) -> float:
        """The seconds of the run so far, those before a restart included."""
        return self._clock() - self._start

    @property
    def has_validated(self) -> bool:
        return bool(self._metrics)

    def validated(
        self,
        at: Standing,
        metrics: Mapping[str, float],
        seconds: float,
        extras: Mapping[str, float] | None = None,
    ) -> None:
        """Report a validation; the best is the one of the lowest loss. ``extras``: what a mode adds."""
        self._metrics = dict(metrics)
        if self._best is None or isnan(self._best["loss"]) or metrics["loss"] < self._best["loss"]:
            self._best = {"step": at.step, **metrics}
        line = ValLine(
            step=at.step,
            samples=at.samples,
            epoch=at.epoch,
            wall_s=self.wall_s,
            loss=metrics["loss"],
            metrics={name: value for name, value in metrics.items() if name != "loss"},
            seconds=seconds,
            replica=self.replica,
            extras=extras or {},
        )
        self.book.validation(line)

    def finish(self, at: Standing, samples_per_s: float, end: End) -> None:
        """Write and show the summary."""
        summary = Summary(
            status=end.status,
            mode=self._config.parallel.mode,
            workers=self.workers,
            replicas=self._config.parallel.replicas,
            steps=at.step,
            samples=at.samples,
            wall_s=round(self.wall_s, 3),
            samples_per_s=round(samples_per_s, 3),
            restarts=self._restarts,
            val=self._metrics,
            best=self._best,
            run_dir=str(end.run_dir),
            model=None if end.weights is None else str(end.weights),
            extras=end.extras,
        )
        self.book.finish(summary.record(), end.resume)


def straggler_event(slow: Straggler, who: str, times: StepTimes, step: int) -> dict[str, Any]:
    """Name ``who`` the others have been waiting for, with its verb: "worker 3 is", "workers 6-7 are"."""
    milliseconds = MILLISECONDS * getattr(times, slow.phase)
    return {
        "event": "straggler",
        "step": step,
        "rank": slow.rank,
        "phase": slow.phase,
        "ratio": round(slow.ratio, 2),
        "warning": f"{who} {slow.ratio:.1f} times slower than the others, "
        f"most of it in {slow.phase} ({milliseconds:.1f} ms per step)",
    }
