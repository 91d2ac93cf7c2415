"""The tables of a report as rows of text: headline figures, where the time went, faults, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_train.report import goodput, happenings
from dist_train.report.charts import place
from dist_train.report.goodput import USES, Spent
from dist_train.report.measured import Measured
from dist_train.report.subjects import Subject
from dist_train.watch.figures import counted, duration, found, quantity

NOTHING = "–"
MOST_FAULTS = 100


@dataclass(frozen=True)
class Table:
    """Rows of text; of each row the first entry is its heading."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int = 0


@dataclass(frozen=True)
class Reported:
    """One run, or one of its replicas, and the time of each of its workers."""

    subject: Subject
    measured: Measured
    summary: Mapping[str, Any]
    spent: Mapping[str, Spent]

    @property
    def status(self) -> str:
        """Say how the run stands; without a summary it is running, or ended without a word."""
        return str(self.summary.get("status") or "no summary: running or killed")

    @property
    def progress(self) -> Mapping[str, Any]:
        """What the summary says, or the last line where there is no summary."""
        last = self.measured.last
        known = {"steps": last.get("step"), "samples": last.get("samples"), "wall_s": last.get("wall_s")}
        return {**known, **self.summary}

    @property
    def wall_s(self) -> float | None:
        """The run's seconds with those that failures cost, and without pauses until somebody resumed."""
        kept = self.progress.get("wall_s")
        return kept + self.measured.history.cost if isinstance(kept, int | float) else None


def headline(runs: Sequence[Reported]) -> Table:
    """Put the runs' figures side by side; a row that no run has an entry for is left out."""
    rows: list[tuple[str, Callable[[Reported], str]]] = [
        ("name", lambda run: _text(run.subject.settings.get("name"))),
        ("status", lambda run: run.status),
        ("mode", _mode),
        ("steps", lambda run: _count(run.progress.get("steps"))),
        ("samples", lambda run: _count(run.progress.get("samples"))),
        ("wall time", lambda run: _duration(run.wall_s)),
        ("samples per second", _rate),
        ("goodput", lambda run: _share(goodput.goodput(goodput.mean(run.spent)))),
        ("validation", lambda run: _measures(run.summary.get("val")) or _last_validation(run.measured)),
        ("best validation", lambda run: _measures(run.summary.get("best"))),
        ("faults", lambda run: _faults(run.measured)),
        ("gradients", _gradients),
        ("staleness", _staleness),
        ("agreement", lambda run: _last(run.measured, "agreement")),
        ("teacher lag", lambda run: _last(run.measured, "teacher_age", " updates")),
        ("error", lambda run: _text(run.summary.get("error"))),
    ]
    table = [(name, *(figure(run) or NOTHING for run in runs)) for name, figure in rows]
    kept = tuple(row for row in table if any(entry != NOTHING for entry in row[1:]))
    return Table(("", *(run.measured.label for run in runs)), kept)


def times(runs: Sequence[Reported]) -> Table:
    """Say where the time of each run's workers went, in the mean over them."""
    means = {run.measured.label: goodput.mean(run.spent) for run in runs if run.spent}
    uses = [use for use in USES if any(spent[use] > 0 for spent in means.values())]
    rows = tuple((goodput.IN_WORDS[use], *(_use(spent, use) for spent in means.values())) for use in uses)
    return Table(("", *means), rows)


def faults(runs: Sequence[Reported]) -> Table:
    """List what went wrong, run by run and in order; of many, the first."""
    rows, total = [], 0
    for run in runs:
        history = run.measured.history
        total += run.measured.happenings.counts.total()
        for fault in run.measured.happenings.faults:
            _, step, _ = place(fault, history)
            when = duration(run.measured.since_origin(fault.clock)) if fault.clock else NOTHING
            kind = happenings.IN_WORDS[fault.kind]
            rows.append((run.measured.label, when, f"{step:,.0f}", kind, fault.text))
    head = ("run", "after", "step", "what", "in its words")
    return Table(head, tuple(rows[:MOST_FAULTS]), left_out=max(0, total - min(len(rows), MOST_FAULTS)))


def differences(subjects: Sequence[Subject]) -> Table:
    """Return the settings in which the runs differ."""
    paths = dict.fromkeys(path for subject in subjects for path in subject.settings)
    rows = tuple(
        (path, *entries)
        for path in paths
        if len(set(entries := [_setting(subject, path) for subject in subjects])) > 1
    )
    return Table(("", *(subject.label for subject in subjects)), rows)


def notes(runs: Sequence[Reported]) -> list[str]:
    """Say what a reader has to know of records that are missing, damaged, or not drawn."""
    said = []
    for run in runs:
        label, measured = run.measured.label, run.measured
        if not measured.lines:
            said.append(f"{label}: no training was logged yet, so there is nothing to draw.")
        elif not run.summary:
            said.append(
                f"{label}: no summary. The run is going on, or was killed; this is what it wrote so far."
            )
        if not run.subject.settings:
            said.append(f"{label}: config.yaml is missing or cannot be read.")
        if measured.damaged:
            said.append(f"{label}: {counted(measured.damaged, 'line')} of the records could not be read.")
        for name, curve in {**measured.validation, **measured.training}.items():
            if curve.not_finite:
                values = counted(curve.not_finite, "value")
                said.append(f"{label}: {values} of {name.replace('_', ' ')} were NaN or infinite; not drawn.")
    return said


def _setting(subject: Subject, path: str) -> str:
    value = subject.settings.get(path, NOTHING)
    return "null" if value is None else str(value)


def _mode(run: Reported) -> str:
    settings = run.subject.settings
    mode = run.summary.get("mode") or settings.get("parallel.mode")
    workers = run.summary.get("workers") or settings.get("parallel.workers")
    many = counted(workers, "worker") if isinstance(workers, int) else f"{workers} workers"
    return f"{mode}, {many}" if mode and workers else ""


def _rate(run: Reported) -> str:
    # A resumed run that had nothing left to do has no rate of its own.
    rate = run.summary.get("samples_per_s") or run.measured.last_of("training", "samples_per_s")
    return quantity(rate) if isinstance(rate, int | float) else ""


def _measures(values: Any) -> str:
    if not isinstance(values, Mapping):
        return ""
    numbers = {str(name): value for name, value in values.items() if _is_number(value)}
    return ", ".join(f"{label} {value}" for label, value in found(numbers))


def _last_validation(measured: Measured) -> str:
    return _measures({name: measured.last_of("validation", name) for name in ("loss", "accuracy")})


def _last(measured: Measured, name: str, unit: str = "") -> str:
    value = measured.last_of("training", name)
    return "" if value is None else f"{value:.4g}{unit}, the mean at the end"


def _faults(measured: Measured) -> str:
    counts = measured.happenings.counts
    return ", ".join(
        f"{happenings.IN_WORDS[kind]}: {counts[kind]:,}" for kind in happenings.KINDS if counts[kind]
    )


def _gradients(run: Reported) -> str:
    fates = run.summary.get("gradients")
    known = fates if isinstance(fates, Mapping) else run.measured.last
    named = [
        f"{known[fate]:,} {fate}" for fate in ("computed", "applied", "dropped", "refused") if known.get(fate)
    ]
    return ", ".join(named)


def _staleness(run: Reported) -> str:
    known = run.measured.happenings.staleness()
    return f"mean {known.mean:.2f}, p99 {known.p99:,}, max {known.max:,}" if known.gradients else ""


def _use(spent: Spent, use: goodput.Use) -> str:
    whole = sum(spent.values())
    return f"{spent[use] / whole:.1%} ({duration(spent[use])})" if whole else NOTHING


def _count(value: Any) -> str:
    return f"{value:,.0f}" if _is_number(value) else ""


def _duration(value: Any) -> str:
    return duration(value) if _is_number(value) else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
