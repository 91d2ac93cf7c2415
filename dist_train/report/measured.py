"""What one run, or one of its replicas, has measured: curves, workers' time and events, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dist_train.layout import EVENTS, METRICS
from dist_train.report.goodput import Interruptions, Spent, spent
from dist_train.report.happenings import Happenings, number
from dist_train.report.history import History, attempts, track
from dist_train.report.reading import Reader, Record
from dist_train.report.thinning import Joining, Numbers, Thinned
from dist_train.report.working import Working

Axis = Literal["samples", "step", "wall_s"]
AXES: tuple[Axis, ...] = ("samples", "step", "wall_s")
# What a line has that is no measure of its own.
OF_THE_LINE = {
    *AXES, "kind", "epoch", "replica", "seconds", "times", "worker_times", "workers", "slowest_rank",
}  # fmt: skip
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
MOST_WINDOWS = 16_000


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
    """``training`` and ``validation`` hold a curve for each measure; ``damaged`` lines could not be read."""

    label: str
    directory: Path
    working: Working
    training: dict[str, Curve] = field(default_factory=dict)
    validation: dict[str, Curve] = field(default_factory=dict)
    validations: Thinned = field(default_factory=lambda: _validations(TRACK_POINTS))
    validation_s: float = 0.0
    happenings: Happenings = field(default_factory=Happenings)
    passed: Thinned = field(default_factory=lambda: Thinned(dict.fromkeys(AXES, "last"), TRACK_POINTS))
    last: Record = field(default_factory=dict)
    lines: int = 0
    damaged: int = 0

    @property
    def history(self) -> History:
        columns = (self.passed.column(axis) for axis in ("step", "samples", "wall_s"))
        return History(attempts(self.happenings.starts), track(*columns))

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

    def name_of(self, member: int) -> str:
        """Name a member of a parameter server as training lines do: a worker, or the ends of a group."""
        names = list(self.working.totals)
        return names[member] if 0 <= member < len(names) else str(member)


def measure(label: str, directory: Path, points: int) -> Measured:
    """Read what there is of a run's records; each curve has at most ``2 * points`` stretches."""
    found = Measured(label, directory, Working(limit=1))
    events = Reader(directory / EVENTS)
    for event in events.each(found.happenings.wants):
        found.happenings.add(event)
    starts = found.happenings.starts
    found.working = Working(MOST_WINDOWS // 4, step=number(starts[0].get("step")) if starts else 0.0)
    lines = Reader(directory / METRICS)
    for block in lines.blocks():
        if not found.lines:
            workers = max(1, len(block[0].get("workers") or block[0].get("worker_times") or ()))
            found.working.limit = max(1, MOST_WINDOWS // workers // 2)
        _add(found, block, points)
    found.damaged = events.damaged + lines.damaged
    return found


def _add(found: Measured, block: Sequence[Record], points: int) -> None:
    training = [line for line in block if line.get("kind") == "train"]
    validation = [line for line in block if line.get("kind") == "val"]
    for lines, curves in ((training, found.training), (validation, found.validation)):
        if lines:
            _draw_out(lines, curves, points)
    if validation:
        took = numbers(line.get("seconds") for line in validation)
        found.validation_s += float(np.nansum(took))
        found.validations.add(end=numbers(line.get("wall_s") for line in validation), seconds=took)
    known = [line for line in block if line.get("kind") in ("train", "val")]
    found.passed.add(**{axis: numbers(line.get(axis) for line in known) for axis in AXES})
    found.lines += len(known)
    found.damaged += len(block) - len(known) + found.working.add(training, _validation_before(known))
    found.last = known[-1] if known else found.last


def _draw_out(lines: Sequence[Record], curves: dict[str, Curve], points: int) -> None:
    """Add to each measure's curve what lines say of it."""
    places = {axis: numbers(line.get(axis) for line in lines) for axis in AXES}
    for name in set().union(*lines) - OF_THE_LINE:
        given = [line.get(name) for line in lines]
        values = numbers(given)
        finite = np.isfinite(values)
        if name not in curves:
            if not finite.any():
                continue
            curves[name] = Curve(Thinned(_CURVE, points))
        curve = curves[name]
        if not finite.all():
            curve.not_finite += sum(map(_is_number, given)) - int(finite.sum())
        kept = values[finite]
        at = {axis: column[finite] for axis, column in places.items()}
        curve.points.add(**at, total=kept, count=np.ones_like(kept), lowest=kept, highest=kept)


def _validation_before(known: Sequence[Record]) -> Numbers:
    """Return for each training line the seconds of the validations since the one before."""
    found, waiting = [], 0.0
    for line in known:
        if line["kind"] == "train":
            found.append(waiting)
            waiting = 0.0
        else:
            waiting += number(line.get("seconds"))
    return np.array(found)


def numbers(values: Any) -> Numbers:
    """Return values as an array, NaN for what is no number; "NaN" and "Infinity" are as in the records."""
    given = list(values)
    try:
        return np.array(given, dtype=float).reshape(len(given))
    except (TypeError, ValueError, OverflowError):
        return np.array([float(value) if _is_number(value) else np.nan for value in given])


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("NaN", "Infinity", "-Infinity")
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1000)


def _validations(limit: int) -> Thinned:
    return Thinned({"end": "last", "seconds": "sum"}, limit)
