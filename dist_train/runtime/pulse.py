"""The pulse: where each worker of this machine is in its step, in memory shared with the launcher.

One slot for each worker, written by that worker alone. The training loop writes its place, which costs about
a microsecond; a thread writes the time twice a second, which shows that the process as a whole is not frozen.
"""

from __future__ import annotations

import atexit
import faulthandler
import mmap
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Self

from dist_train.errors import FAILED
from dist_train.rules.liveness import PHASES, Beat, Hung, Limits, Watch

TICK_S = 0.5

# What each word of a slot holds: times are floats, step and phase are integers.
_SINCE, _STEP, _PHASE, _PULSE_AT, _LONGEST = range(5)  # of the last, one for each phase
_SLOT = 8 * (_LONGEST + len(PHASES))
_PHASE_NUMBER = {name: number for number, name in enumerate(PHASES)}


class _Slot:
    """One worker's words in the memory, each written in one instruction.

    Not by ``struct``: it fills a place with zeros before it writes there, and a reader meanwhile would see a
    worker that has been starting ever since the machine was switched on.
    """

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        part = memoryview(memory)[number * _SLOT : (number + 1) * _SLOT]
        self.times, self.counts = part.cast("d"), part.cast("q")

    def write_place(self, since: float, step: int, phase: int) -> None:
        # The time comes first: a place read half-written then looks too young, never too old.
        self.times[_SINCE] = since
        self.counts[_STEP] = step
        self.counts[_PHASE] = phase

    def place(self) -> tuple[float, int, int]:
        return self.times[_SINCE], self.counts[_STEP], self.counts[_PHASE]

    def beat(self, rank: int) -> Beat:
        place = self.place()
        # Read until it stands still: the writer may be in the middle of writing.
        while (again := self.place()) != place:
            place = again
        since, step, phase = place
        longest = self.times[_LONGEST + phase]
        return Beat(rank, step, PHASES[phase], since, self.times[_PULSE_AT] or None, longest)

    def release(self) -> None:
        """Let go of the memory, which can only then be closed."""
        self.times.release()
        self.counts.release()


def dump_and_exit(why: str) -> None:
    """Write ``why`` and the stacks of all threads to stderr, and end the process (status 1)."""
    print(why, file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    os._exit(FAILED)


class PulseWriter:
    """A worker's own slot. ``path`` is what the launcher gave (None without one: nobody else reads it)."""

    def __init__(self, path: str | Path | None, slot: int = 0) -> None:
        if path is None:
            self._slot = _Slot(mmap.mmap(-1, _SLOT), 0)
            self._slot.write_place(time.monotonic(), 0, 0)
        else:
            with open(path, "r+b") as file:
                self._slot = _Slot(mmap.mmap(file.fileno(), 0), slot)
        self._since, _, self._phase = self._slot.place()
        self._longest = [0.0] * len(PHASES)
        self._closed = threading.Event()
        self._writing = threading.Lock()
        self._tick()
        self.every_tick(self._tick)
        # At interpreter exit the thread stops ticking before the process ends: that is not a freeze.
        atexit.register(self.close)

    def phase(self, name: str, step: int) -> None:
        """Say that ``name`` (one of PHASES) begins now in ``step``; say it again to show progress in it."""
        now = time.monotonic()
        took = now - self._since
        last = self._phase
        if took > self._longest[last]:
            self._longest[last] = took
            self._slot.times[_LONGEST + last] = took
        self._since = now
        self._phase = _PHASE_NUMBER[name]
        self._slot.write_place(now, step, self._phase)

    def beat(self, rank: int) -> Beat:
        """Read this writer's own place, to be sent to whoever cannot see the memory."""
        return self._slot.beat(rank)

    def every_tick(self, action: Callable[[], None]) -> None:
        """Call ``action`` twice a second in a thread of its own, so that one that blocks delays nobody.

        An action that raises is reported on stderr and not called again.
        """

        def repeat() -> None:
            try:
                while not self._closed.wait(TICK_S):
                    action()
            except Exception:
                traceback.print_exc()

        threading.Thread(target=repeat, name="pulse", daemon=True).start()

    def watch_self(self, limits: Limits, rank: int, on_hung: Callable[[str], None] = dump_and_exit) -> None:
        """Without a launcher: notice from inside that the loop does not move, and call ``on_hung(why)``."""
        watch = Watch(limits, TICK_S)

        def look() -> None:
            now = time.monotonic()
            verdict = watch.look([self.beat(rank)], now)
            if isinstance(verdict, Hung) and verdict.kind == "hung":
                on_hung(verdict.why)

        self.every_tick(look)

    def close(self) -> None:
        """End the pulse in good order: from now on its silence means nothing."""
        atexit.unregister(self.close)
        with self._writing:
            self._closed.set()
            self._slot.times[_PULSE_AT] = inf

    def _tick(self) -> None:
        with self._writing:
            if not self._closed.is_set():
                self._slot.times[_PULSE_AT] = time.monotonic()


class PulseReader:
    """The launcher's view of all slots. The file has no name, so that nothing is left behind by any death.

    Workers inherit the descriptor ``fileno()`` and open it as ``path``.
    """

    def __init__(self, workers: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the reader
        self._file.truncate(workers * _SLOT)
        self._memory = mmap.mmap(self._file.fileno(), 0)
        self._slots = [_Slot(self._memory, number) for number in range(workers)]
        for slot in self._slots:
            slot.write_place(time.monotonic(), 0, 0)

    @property
    def path(self) -> str:
        return f"/dev/fd/{self.fileno()}"

    def fileno(self) -> int:
        return self._file.fileno()

    def beats(self) -> list[Beat]:
        """Read every worker's place; one without a pulse yet is ``starting`` since this was made."""
        return [slot.beat(rank) for rank, slot in enumerate(self._slots)]

    def close(self) -> None:
        for slot in self._slots:
            slot.release()
        self._memory.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
