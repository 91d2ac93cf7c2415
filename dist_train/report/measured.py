"""What one run, or one of its replicas, has measured: curves, workers' time and events, in bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from dist_train.layout import EVENTS, METRICS
from dist_train.report.columns import Columns
from dist_train.report.goodput import Interruptions, Spent, spent
from dist_train.report.happenings import Happenings
from dist_train.report.history import History, attempts, number, track
from dist_train.report.parts import blocks
from dist_train.report.reading import Reader, Record
from dist_train.report.thinning import Joining, Numbers, Thinned
from dist_train.report.working import CAUSES, Working

Axis = Literal["samples", "step", "wall_s"]
AXES: tuple[Axis, ...] = ("samples", "step", "wall_s")
# What places a measure, or is made into something else than a curve.
NO_CURVE = {*AXES, "seconds", *CAUSES}
_CURVE: Mapping[str, Joining] = {
    **dict.fromkeys(AXES, "last"),
    "total": "sum",
    "count": "sum",
    "lowest": "lowest",
    "highest": "highest",
}
# Of a track, as many stretches as tell the place of an event on every axis.
TRACK_POINTS = 2000
# Windows of all workers together: what a trace viewer opens without trouble.
MOST_WINDOWS = 8_000


@dataclass
class Curve:
    """A measure by its mean, lowest and highest value over stretches of lines.

    ``not_finite`` counts its values that were NaN or infinite; they are in no stretch.
    """

    points: Thinned
    not_finite: int = 0

    @property
    def mean(self) -> Numbers:
        count = self.points.column("count")
        return self.points.column("total") / count if len(count) else count


@dataclass
class Measured:
    """``training`` and ``validation`` hold a curve for each measure; ``damaged`` lines could not be read.

    ``origin`` is the clock that a person counts from: that of the first event, of all replicas of a run.
    """

    label: str
    directory: Path
    working: Working
    origin: float = 0.0
    training: dict[str, Curve] = field(default_factory=dict)
    validation: dict[str, Curve] = field(default_factory=dict)
    validations: Thinned = field(default_factory=lambda: _validations(TRACK_POINTS))
    validation_s: float = 0.0
    since_line_s: float = 0.0
    happenings: Happenings = field(default_factory=Happenings)
    passed: Thinned = field(default_factory=lambda: Thinned(dict.fromkeys(AXES, "last"), TRACK_POINTS))
    last: Record = field(default_factory=dict)
    lines: int = 0
    damaged: int = 0

    @property
    def history(self) -> History:
        columns = (self.passed.column(axis) for axis in ("step", "samples", "wall_s"))
        return History(attempts(self.happenings.starts), track(*columns))

    def since_origin(self, clock: float) -> float:
        """Return the seconds from the origin to a moment of the clock; 0 for an event without a time."""
        return max(0.0, clock - self.origin)

    def spent(self) -> dict[str, Spent]:
        """Return each worker's seconds by use."""
        history = self.history
        replaced: dict[str, float] = {}
        for member, start, end in self.happenings.absent():
            name = self.name_of(member)
            kept = max(0.0, history.wall_of(end) - history.wall_of(start))
            replaced[name] = replaced.get(name, 0.0) + kept
        wall_s = float(history.track.wall_s[-1])
        steps = float(history.track.step[-1])
        again = self.happenings.lost_updates * (wall_s / steps if steps else 0.0)
        around = Interruptions(
            validation=self.validation_s,
            checkpoints=sum(each.stall_s for each in self.happenings.saved),
            lost=sum(seconds for _, seconds in history.lost()),
            recovery=sum(end - start for start, end in history.recoveries()),
            replaced=replaced,
            rolled_back=again,
        )
        return spent(self.working.totals, wall_s, around)

    def last_of(self, kind: Literal["training", "validation"], name: str) -> float | None:
        """Return a measure's mean over its last stretch; None where it was never measured."""
        curve = (self.training if kind == "training" else self.validation).get(name)
        return None if curve is None else float(curve.mean[-1])

    def name_of(self, member: int) -> str:
        """Name a member of a parameter server as training lines do: a worker, or the ends of a group."""
        names = list(self.working.totals)
        return names[member] if 0 <= member < len(names) else str(member)


def measure(label: str, directory: Path, points: int, told: Iterable[Record] = ()) -> Measured:
    """Read what there is of a run's records; each curve has at most ``2 * points`` stretches.

    ``told``: events that are not in its own records, in order.
    """
    found = Measured(label, directory, Working(limit=1))
    events = Reader(directory / EVENTS)
    own = events.each(found.happenings.wants)
    # Reads no further ahead than the next line, as what is wanted depends on what came before.
    for event in heapq.merge(own, told, key=lambda event: number(event.get("time"))):
        found.happenings.add(event)
    found.origin = found.happenings.first_clock
    starts = found.happenings.starts
    found.working.step = number(starts[0].get("step")) if starts else 0.0
    found.damaged = events.damaged
    for block in blocks(directory / METRICS):
        found.damaged += block.damaged
        found.last = block.last or found.last
        _take(found, block.by_kind, points)
    return found


def _take(found: Measured, by_kind: Mapping[str, Columns], points: int) -> None:
    training, validation = by_kind.get("train"), by_kind.get("val")
    for lines in filter(None, (training, validation)):
        found.lines += len(lines.at)
        _draw_out(lines, found.training if lines is training else found.validation, points)
    _pass_by(found, list(by_kind.values()))
    if validation is not None:
        took = np.nan_to_num(validation.column("seconds"))
        found.validation_s += float(took.sum())
        found.validations.add(end=np.nan_to_num(validation.column("wall_s")), seconds=took)
    if training is not None:
        if not found.working.windows and training.workers:
            found.working.limit = max(1, MOST_WINDOWS // len(training.workers[0].names) // 2)
        found.working.add(training, _validation_before(found, training, validation))
    elif validation is not None:
        found.since_line_s += float(took.sum())


def _pass_by(found: Measured, several: Sequence[Columns]) -> None:
    """Remember where lines of all kinds lie, in their order."""
    if several:
        order = np.argsort(np.concatenate([lines.at for lines in several]))
        on_axes = {axis: np.concatenate([lines.column(axis) for lines in several])[order] for axis in AXES}
        found.passed.add(**on_axes)


def _draw_out(lines: Columns, curves: dict[str, Curve], points: int) -> None:
    """Add to each measure's curve what lines say of it."""
    places = {axis: lines.column(axis) for axis in AXES}
    for name, values in lines.values.items():
        finite = np.isfinite(values)
        if name in NO_CURVE or (name not in curves and not finite.any()):
            continue
        curve = curves.setdefault(name, Curve(Thinned(_CURVE, points)))
        curve.not_finite += lines.not_finite[name]
        kept = values[finite]
        at = {axis: column[finite] for axis, column in places.items()}
        curve.points.add(**at, total=kept, count=np.ones_like(kept), lowest=kept, highest=kept)


def _validation_before(found: Measured, training: Columns, validation: Columns | None) -> Numbers:
    """Return for each training line the seconds of the validations since the one before."""
    seconds = np.zeros(len(training.at) + 1)
    seconds[0] = found.since_line_s
    if validation is not None:
        following = np.searchsorted(training.at, validation.at)
        np.add.at(seconds, following, np.nan_to_num(validation.column("seconds")))
    found.since_line_s = float(seconds[-1])
    return seconds[:-1]


def _validations(limit: int) -> Thinned:
    return Thinned({"end": "last", "seconds": "sum"}, limit)
