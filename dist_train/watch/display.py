"""What rank 0 tells the person in front of it: live on a terminal, plain lines anywhere else."""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol, TextIO, cast

from dist_train.watch.figures import (
    Length,
    as_text,
    one_line,
    outcome,
    places,
    position,
    progress,
    smoothed,
    validation,
)
from dist_train.watch.records import TrainLine, ValLine
from dist_train.watch.server_figures import server_outcome, server_progress, workers_text

# How many times rarer than training lines those of the workers are.
WORKERS_EVERY = 10


class Stream(Protocol):
    """Where plain lines go: the part of a text file that they need."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


class Display(Protocol):
    """One run's display. ``close`` may come at any time, also twice and after ``finish``."""

    def start(self, facts: Mapping[str, str]) -> None:
        """Show what is about to be trained: label to text, in the order given."""

    def train(self, line: TrainLine) -> None: ...

    def validation(self, line: ValLine) -> None: ...

    def note(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        """Show the end of the run: summary.json's object, and the command that continues it, if any."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


class SilentDisplay:
    """The display of every worker but rank 0: none."""

    def start(self, facts: Mapping[str, str]) -> None: ...

    def train(self, line: TrainLine) -> None: ...

    def validation(self, line: ValLine) -> None: ...

    def note(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None: ...

    def close(self) -> None: ...


class PlainDisplay:
    """One line for each thing that happened, without control characters: for logs, pipes and CI.

    Of training lines, which may come many times a second, it shows one in ``every_s`` seconds, and what
    each worker of a server does ten times more rarely.
    """

    def __init__(
        self,
        length: Length,
        stream: Stream,
        every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._length = length
        self._stream = stream
        self._every_s = every_s
        self._clock = clock
        self._shown_at = self._workers_at = -math.inf
        self._rate: float | None = None

    def start(self, facts: Mapping[str, str]) -> None:
        self._rows(facts)
        self._print("")

    def train(self, line: TrainLine) -> None:
        self._rate = smoothed(self._rate, line.samples_per_s)
        now = self._clock()
        last = line.step >= self._length.steps
        if now - self._shown_at < self._every_s and not last:
            return
        self._shown_at = now
        step, eta, epoch = position(line, self._length, self._rate)
        self._print(as_text([step, epoch, *progress(line), *server_progress(line), eta]))
        if line.workers is not None and (last or now - self._workers_at >= WORKERS_EVERY * self._every_s):
            self._workers_at = now
            self._print("workers  " + workers_text(line.workers))

    def validation(self, line: ValLine) -> None:
        self._print("validation  " + as_text(validation(line, self._length)))

    def note(self, text: str) -> None:
        self._print(text)

    def warning(self, text: str) -> None:
        self._print(f"warning: {text}")

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        further = {"to continue": resume} if resume else {}
        self._print("")
        self._rows({**outcome(summary), **server_outcome(summary), **places(summary), **further})

    def close(self) -> None:
        self._stream.flush()

    def _rows(self, rows: Mapping[str, str]) -> None:
        width = max(map(len, rows), default=0)
        for label, text in rows.items():
            self._print(f"{label:<{width}}  {text}")

    def _print(self, text: str) -> None:
        print(one_line(text), file=self._stream, flush=True)


class LastingStream:
    """Standard output for a long run: when its reader goes away, what follows is dropped.

    A closed terminal or pipe must not stop training. Letters that the encoding lacks become "?".
    """

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        self._stream = stream
        self.encoding = stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except OSError:
            self._drop_what_follows()

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop_what_follows()

    def _drop_what_follows(self) -> None:
        # The descriptor itself, so that Python's flush at exit does not fail either.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


def open_display(length: Length, silent: bool = False, stream: TextIO | None = None) -> Display:
    """Choose the display for this process: ``silent`` for every rank but 0, else by ``stream``
    (default: standard output), live on a terminal that can move its cursor and plain otherwise.
    """
    if silent:
        return SilentDisplay()
    lasting = LastingStream(stream or sys.stdout)
    if lasting.isatty():
        from rich.console import Console

        from dist_train.watch.live import LiveDisplay

        console = Console(file=cast(IO[str], lasting), highlight=False)
        if not console.is_dumb_terminal:
            return LiveDisplay(length, console)
    return PlainDisplay(length, lasting)
