"""A run's timeline in Chrome's trace format, which Perfetto opens: a track for each worker.

The format: "Trace Event Format" by the Chromium project. Times are microseconds since the run's first event,
by the clock: what a failure threw away, and the way back, are there too, and the replicas of one run line up.
A worker's track is as fine as training lines are: each window between two of them is filled with what the
worker did in it, use by use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

from dist_train.report import goodput
from dist_train.report.goodput import BY_LINE
from dist_train.report.happenings import IN_WORDS, Saved
from dist_train.report.history import History
from dist_train.report.measured import Measured

TraceEvent = dict[str, Any]

MICROSECONDS = 1e6
# The first track is about the whole run, and the second about its checkpoints, written in the background.
RUN, CHECKPOINTS, FIRST_WORKER = 0, 1, 2
# Measures that are drawn as curves above the tracks, by the name that they have there.
COUNTERS = {"loss": "loss", "samples_per_s": "samples per second", "staleness": "staleness"}


def trace(runs: Sequence[Measured]) -> dict[str, Any]:
    """Return the traces of all runs as one, each run a process of its own."""
    events = [event for number, run in enumerate(runs) for event in _of_run(run, number)]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _of_run(run: Measured, process: int) -> Iterator[TraceEvent]:
    history = run.history
    workers = list(run.working.totals)
    tracks = ["run", "checkpoints", *(f"worker {name}" for name in workers)]
    yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": run.label}}
    yield {"ph": "M", "pid": process, "name": "process_sort_index", "args": {"sort_index": process}}
    for track, name in enumerate(tracks):
        of_track = {"ph": "M", "pid": process, "tid": track}
        yield {**of_track, "name": "thread_name", "args": {"name": name}}
        yield {**of_track, "name": "thread_sort_index", "args": {"sort_index": track}}
    yield from _working(run, history, process)
    yield from _whole_run(run, history, process)
    for saved in run.happenings.saved:
        yield _saved(saved, run.since_origin(saved.clock), process)
    yield from _faults(run, history, process)
    yield from _counters(run, history, process)


def _working(run: Measured, history: History, process: int) -> Iterator[TraceEvent]:
    """Fill each window with the worker's uses of it, one after the other."""
    tracks = {name: FIRST_WORKER + place for place, name in enumerate(run.working.totals)}
    for name, start, end, seconds in run.working.shown():
        # What a window begins with, a validation say, is on the run's own track.
        at = _at_wall(run, history, end) - min(float(seconds.sum()), end - start)
        for use, length in zip(BY_LINE, seconds, strict=True):
            # What was measured may exceed the window by rounding; tracks must not overlap.
            length = min(float(length), _at_wall(run, history, end) - at)
            if length > 0:
                yield _slice(process, tracks[name], goodput.IN_WORDS[use], at, length)
                at += length


def _whole_run(run: Measured, history: History, process: int) -> Iterator[TraceEvent]:
    ends, lengths = run.validations.column("end"), run.validations.column("seconds")
    for end, length in zip(ends, lengths, strict=True):
        start = _at_wall(run, history, float(end)) - float(length)
        yield _slice(process, RUN, "validation", start, float(length))
    for failed, length in history.lost():
        yield _slice(process, RUN, "lost work", run.since_origin(failed) - length, length)
    for failed, back in history.recoveries():
        yield _slice(process, RUN, "recovery", run.since_origin(failed), back - failed)
    for member, start, end in run.happenings.absent():
        # Several may be gone at once: each interval is a track of its own.
        event = {"cat": "recovery", "name": f"worker {run.name_of(member)} is replaced", "pid": process,
                 "tid": RUN, "id": f"{process}.{member}.{start}"}  # fmt: skip
        yield {**event, "ph": "b", "ts": run.since_origin(start) * MICROSECONDS}
        yield {**event, "ph": "e", "ts": run.since_origin(end) * MICROSECONDS}


def _faults(run: Measured, history: History, process: int) -> Iterator[TraceEvent]:
    tracks = {name: FIRST_WORKER + place for place, name in enumerate(run.working.totals)}
    for fault in run.happenings.faults:
        yield {
            "ph": "i",
            # A mark on the worker's track, or across all tracks of the run.
            "s": "t" if fault.worker in tracks else "p",
            "pid": process,
            "tid": tracks.get(fault.worker or "", RUN),
            "name": IN_WORDS[fault.kind],
            "ts": run.since_origin(fault.clock) * MICROSECONDS,
            "args": {"what": fault.text},
        }


def _counters(run: Measured, history: History, process: int) -> Iterator[TraceEvent]:
    for name, shown in COUNTERS.items():
        if name not in run.training:
            continue
        curve = run.training[name]
        for wall_s, value in zip(curve.points.column("wall_s"), curve.mean, strict=True):
            # A line may lack its wall time.
            if not isfinite(wall_s):
                continue
            at = _at_wall(run, history, float(wall_s)) * MICROSECONDS
            yield {"ph": "C", "pid": process, "name": shown, "ts": at, "args": {shown: float(value)}}


def _saved(saved: Saved, end: float, process: int) -> TraceEvent:
    event = _slice(
        process, CHECKPOINTS, f"checkpoint of step {saved.step:.0f}", end - saved.seconds, saved.seconds
    )
    return {**event, "args": {"training stood still for (s)": saved.stall_s}}


def _slice(process: int, track: int, name: str, start: float, length: float) -> TraceEvent:
    return {
        "ph": "X",
        "pid": process,
        "tid": track,
        "name": name,
        "ts": round(start * MICROSECONDS, 1),
        "dur": round(length * MICROSECONDS, 1),
    }


def _at_wall(run: Measured, history: History, wall_s: float) -> float:
    """Return the seconds from the origin until a wall time was reached for the last time."""
    first = run.since_origin(history.attempts[0].clock) if history.attempts else 0.0
    return first + history.clock_of(wall_s)
