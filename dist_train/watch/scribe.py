"""A logbook that a thread of its own writes in: who has something to write down does not wait for the disk.

A network file system may stand still for seconds. The coordinator of a parameter server must not: its hearers
would take it for lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from queue import Queue
from typing import Any

from dist_train.watch.logbook import Logbook, stamped
from dist_train.watch.records import TrainLine, ValLine

# As many calls may wait to be written; whoever comes with another one waits as well.
MOST_WAITING = 50_000

Job = Callable[[], None]


class Scribe:
    """Passes all that a logbook is told on to ``book``, in order. Threads may share one.

    What ``book`` raises is raised by the next call; nothing is written after it.
    """

    def __init__(self, book: Logbook, most_waiting: int = MOST_WAITING) -> None:
        self._book = book
        self._jobs: Queue[Job | None] = Queue(most_waiting)
        self._error: Exception | None = None
        self._closed = False
        # Nothing is handed over after the last job.
        self._door = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="scribe", daemon=True)
        self._thread.start()

    def start(self, facts: Mapping[str, str]) -> None:
        self._tell(partial(self._book.start, facts))

    def train(self, line: TrainLine) -> None:
        self._tell(partial(self._book.train, line))

    def validation(self, line: ValLine) -> None:
        self._tell(partial(self._book.validation, line))

    def event(self, event: Mapping[str, Any]) -> None:
        # The time is the one at which it happened.
        self._tell(partial(self._book.event, stamped(event)))

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        self.settle()
        self._book.finish(summary, resume)

    def settle(self) -> None:
        """Return when all that was told before is written; raise what kept it from being."""
        self.wait()
        self._raise()

    def wait(self) -> None:
        """Return when all that was told before is written, or will not be."""
        written = threading.Event()
        if self._hand_over(written.set):
            written.wait()

    def close(self) -> None:
        """Write what was told, and close the book; what comes later is not written."""
        if self._hand_over(None):
            self._thread.join()
            self._book.close()

    def _tell(self, job: Job) -> None:
        self._raise()
        self._hand_over(partial(self._attempt, job))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _hand_over(self, job: Job | None) -> bool:
        with self._door:
            if self._closed:
                return False
            self._closed = job is None
            self._jobs.put(job)
            return True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _attempt(self, job: Job) -> None:
        if self._error is None:
            try:
                job()
            except Exception as error:
                self._error = error
