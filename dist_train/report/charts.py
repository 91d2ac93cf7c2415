"""Which charts a report has, as data: what is drawn, under which title, in which unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dist_train.report.happenings import Fault, Kind
from dist_train.report.history import History
from dist_train.report.measured import AXES, Axis, Curve, Measured
from dist_train.report.thinning import Numbers

Section = Literal["learning", "gradients", "teaching"]

# What a parameter server adds to lines of validation as well.
OF_THE_SERVER = {"staleness", "dropped", "refused"}
# Beyond this ratio of largest to smallest, a loss is drawn on a logarithmic scale.
WIDE = 50.0
# Marks of one kind for one run: more would hide the curves.
MOST_MARKS = 40


@dataclass(frozen=True)
class Line:
    """One run's curve, by the ``number`` of the run: its places on each axis, mean, lowest and highest."""

    label: str
    number: int
    at: Mapping[Axis, Numbers]
    mean: Numbers
    lowest: Numbers
    highest: Numbers
    not_finite: int = 0


@dataclass(frozen=True)
class Mark:
    """A fault of run ``number``, and its place on each axis."""

    kind: Kind
    number: int
    at: Mapping[Axis, float]


@dataclass(frozen=True)
class Chart:
    """A chart of several runs; ``name`` is that of its files, ``unit`` what its y axis counts in."""

    name: str
    section: Section
    title: str
    unit: str
    lines: tuple[Line, ...]
    logarithmic: bool = False


@dataclass(frozen=True)
class Bars:
    """How often each staleness, in updates, came up: the share of its gradients, run by run."""

    label: str
    number: int
    shares: Mapping[int, float]


# Title and unit of the measures that dist_train itself writes.
_TRAINING: Mapping[str, tuple[Section, str, str]] = {
    "loss": ("learning", "Training loss", "loss"),
    "lr": ("learning", "Learning rate", "learning rate"),
    "grad_norm": ("learning", "Norm of the gradient", "norm"),
    "samples_per_s": ("learning", "Throughput", "samples per second"),
    "staleness": ("gradients", "Mean staleness of gradients", "updates"),
    "dropped": ("gradients", "Gradients dropped so far", "gradients"),
    "refused": ("gradients", "Gradients refused so far", "gradients"),
    "agreement": ("teaching", "Agreement with the teachers", "agreement loss"),
    "teacher_age": ("teaching", "Teacher lag (below zero: ahead)", "updates"),
}
_LOSSES = {"loss", "grad_norm", "agreement"}


def charts(runs: Sequence[Measured]) -> list[Chart]:
    """Choose the charts for what the runs have measured: loss first, then by section; none that is empty."""
    found = [_chart("training", name, _curves(runs, name, training=True)) for name in _names(runs, True)]
    validation = [
        _chart("validation", name, _curves(runs, name, training=False)) for name in _names(runs, False)
    ]
    # A chart of nothing but zeros says what the table of the runs says already.
    told = [chart for chart in found if chart.title not in _COUNTS or _ever(chart)]
    losses = [chart for chart in told if chart.name == "training-loss"]
    others = [chart for chart in told if chart.name != "training-loss"]
    return sorted([*losses, *validation, *others], key=lambda chart: _SECTIONS.index(chart.section))


def marks(run: Measured, number: int) -> list[Mark]:
    """Place the faults of a run on all axes: by their step, or by the clock where they have none."""
    history, shown = run.history, dict[Kind, int]()
    found = []
    for fault in run.happenings.faults:
        shown[fault.kind] = shown.get(fault.kind, 0) + 1
        if shown[fault.kind] <= MOST_MARKS:
            found.append(Mark(fault.kind, number, dict(zip(AXES, place(fault, history), strict=True))))
    return found


def place(fault: Fault, history: History) -> tuple[float, float, float]:
    """Return samples, step and wall time of a fault, with what failures had cost by then."""
    if fault.step is not None:
        step, samples, _ = history.track.at_step(fault.step)
    else:
        step, samples, _ = history.track.at_wall(history.wall_of(fault.clock))
    return samples, step, history.elapsed_at(fault.clock)


def staleness(runs: Sequence[Measured]) -> list[Bars]:
    """Return the histogram of each run that has one."""
    found = []
    for number, run in enumerate(runs):
        histogram = run.happenings.staleness()
        if histogram.gradients:
            shares = {value: times / histogram.gradients for value, times in histogram.counts.items()}
            found.append(Bars(run.label, number, shares))
    return found


_SECTIONS: Sequence[Section] = get_args(Section)
_COUNTS = {_TRAINING["dropped"][1], _TRAINING["refused"][1]}


def _names(runs: Sequence[Measured], training: bool) -> list[str]:
    """Name the measures that any run has, in the order of the table above and then by name."""
    found = {name for run in runs for name in (run.training if training else run.validation)}
    unwanted = set() if training else OF_THE_SERVER
    known = [name for name in _TRAINING if name in found - unwanted]
    return known + sorted(found - unwanted - set(known))


def _curves(runs: Sequence[Measured], name: str, training: bool) -> tuple[Line, ...]:
    curves = [(run, run.training if training else run.validation) for run in runs]
    return tuple(
        _line(run, number, of_run[name])
        for number, (run, of_run) in enumerate(curves)
        if name in of_run and len(of_run[name].points)
    )


def _line(run: Measured, number: int, curve: Curve) -> Line:
    points = curve.points
    at = {axis: points.column(axis) for axis in AXES}
    return Line(
        label=run.label,
        number=number,
        at=at | {"wall_s": run.history.elapsed(at["wall_s"])},
        mean=curve.mean,
        lowest=points.column("lowest"),
        highest=points.column("highest"),
        not_finite=curve.not_finite,
    )


def _chart(kind: str, name: str, lines: tuple[Line, ...]) -> Chart:
    words = name.replace("_", " ")
    if kind == "validation":
        section, title, unit = ("learning", f"Validation {words}", words)
    else:
        section, title, unit = _TRAINING.get(name, ("learning", f"Training {words}", words))
    logarithmic = name in _LOSSES and _is_wide(lines)
    return Chart(f"{kind}-{_file_name(name)}", section, title, unit, lines, logarithmic)  # type: ignore[arg-type]


def _is_wide(lines: Sequence[Line]) -> bool:
    if not lines:
        return False
    smallest = min(float(line.lowest.min()) for line in lines)
    return smallest > 0 and max(float(line.highest.max()) for line in lines) / smallest > WIDE


def _ever(chart: Chart) -> bool:
    return any(bool(np.any(line.highest > 0)) for line in chart.lines)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)[:60]
