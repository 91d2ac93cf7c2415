"""Rank 0's book of the run: every line goes to the display, to the files, and to TensorBoard, from here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dist_train.errors import TrainingError
from dist_train.layout import DISCARDED, EVENTS, METRICS, SUMMARY
from dist_train.watch.display import Display
from dist_train.watch.records import JsonLines, TrainLine, ValLine, trim
from dist_train.watch.scalars import NoScalars, Scalars
from dist_train.watch.summary import write_summary


class Logbook(Protocol):
    def start(self, facts: Mapping[str, str]) -> None: ...

    def train(self, line: TrainLine) -> None: ...

    def validation(self, line: ValLine) -> None: ...

    def event(self, event: Mapping[str, Any]) -> None:
        """Write down that something happened; a ``note`` or ``warning`` in it is shown to the person too."""

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None: ...

    def close(self) -> None: ...


class NoLogbook:
    """The logbook of every worker but rank 0: none."""

    def start(self, facts: Mapping[str, str]) -> None: ...

    def train(self, line: TrainLine) -> None: ...

    def validation(self, line: ValLine) -> None: ...

    def event(self, event: Mapping[str, Any]) -> None: ...

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None: ...

    def close(self) -> None: ...


class RunLogbook:
    """The logbook in a run directory. Opening it at ``step`` sets lines of later steps aside: they are
    made again."""

    def __init__(self, run_dir: Path, display: Display, scalars: Scalars | NoScalars, step: int) -> None:
        self._run_dir = run_dir
        self._display = display
        self._scalars = scalars
        self._disk_refused = False
        self._closed = False
        aside = run_dir / DISCARDED
        aside.parent.mkdir(parents=True, exist_ok=True)
        trim(run_dir / METRICS, lambda record: record.get("step", 0) <= step, aside)
        self._metrics = JsonLines(run_dir / METRICS)
        self._events = JsonLines(run_dir / EVENTS)

    def start(self, facts: Mapping[str, str]) -> None:
        self._display.start(facts)

    def train(self, line: TrainLine) -> None:
        if self._closed:
            return
        self._put(self._metrics, line.record())
        self._scalars.train(line)
        self._display.train(line)

    def validation(self, line: ValLine) -> None:
        if self._closed:
            return
        self._put(self._metrics, line.record())
        self._scalars.validation(line)
        self._display.validation(line)

    def event(self, event: Mapping[str, Any]) -> None:
        if self._closed:
            return
        self._put(self._events, stamped(event))
        if "note" in event:
            self._display.note(str(event["note"]))
        if "warning" in event:
            self._display.warning(str(event["warning"]))

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        write_summary(self._run_dir / SUMMARY, summary)
        self._display.finish(summary, resume)

    def _put(self, file: JsonLines, record: Mapping[str, Any]) -> None:
        """Write a line; a full disk is worth a warning, not the run."""
        try:
            file.write(record)
        except TrainingError as error:
            if not self._disk_refused:
                self._display.warning(str(error))
            self._disk_refused = True

    def close(self) -> None:
        """Close the files; what comes later, such as the gradient of a worker that slept, is not written."""
        self._closed = True
        self._display.close()
        self._scalars.close()
        self._metrics.close()
        self._events.close()


def stamped(event: Mapping[str, Any]) -> dict[str, Any]:
    """Add the time of day to an event, for people; nothing is decided by it."""
    return {"time": round(time.time(), 3), **event}


def with_warning(event: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a saver's event what a person should hear of it: a failure, not a success."""
    if event["event"] != "checkpoint_failed":
        return dict(event)
    return {**event, "warning": f"the checkpoint of step {event['step']} was not written: {event['reason']}"}
