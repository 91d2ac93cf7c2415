"""All workers stop at the same step boundary, without a collective in every step.

A worker that is told to stop may not leave at once: its peers would wait for it inside the next
all-reduce. Each worker therefore pledges the earliest boundary at which it can stop, and all of them stop
at the latest pledge. The pledge of a worker that is busy inside a step is made by its pulse thread, so a
worker that waits at its own pledge never waits for ever. Worker 0 announces what is agreed; where the group
keeps step with others, such as replicas that exchange predictions, it agrees with these first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

# Where worker 0 announces what is agreed.
_TARGET = "stop/target"


class KeyValueStore(Protocol):
    """What an agreement needs of a torch.distributed store; its in-process twin is ``HashStore``."""

    def set(self, key: str, value: str, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...


class Others(Protocol):
    """What the group keeps step with beside its own workers; asked by worker 0, never twice at once."""

    def asked(self) -> str | None:
        """Return why one of the others was asked to stop; None while none was."""

    def pledge(self, boundary: int, reason: str) -> int | None:
        """Say the earliest boundary at which the group can stop; return where it is to, once that is known.

        Asked again, it may name an earlier boundary than before: nobody goes on for ever.
        """

    def close(self, boundary: int) -> None:
        """Say that the group has ended at a boundary, and ask no more."""


class StopAgreement:
    """One worker's side of the agreement; ``others`` are given to worker 0 alone.

    ``request`` may be called from a signal handler, ``poll`` from any thread, ``reached`` from the
    training loop at every step boundary.
    """

    def __init__(
        self,
        store: KeyValueStore,
        rank: int,
        workers: int,
        patience_s: float = 60.0,
        pause: Callable[[float], None] = time.sleep,
        others: Others | None = None,
    ) -> None:
        self._store = store
        self._rank = rank
        self._others = others
        self._pledge_keys = [f"stop/pledge/{peer}" for peer in range(workers)]
        self._patience_s = patience_s
        self._pause = pause
        self._lock = threading.Lock()
        self._next_boundary = 0
        self._requested: str | None = None
        self._pledge: int | None = None
        self._target: int | None = None
        self._closed = False
        self.reason = ""

    def request(self, reason: str) -> None:
        """Ask all workers to stop; takes no lock, so that a signal handler may call it."""
        self._requested = reason

    def poll(self) -> None:
        """Look for a request and make this worker's pledge; a few microseconds while there is none."""
        with self._lock:
            if self._target is not None or self._closed:
                return
            if self._pledge is None:
                self._pledge_if_asked()
            if self._pledge is not None:
                self._look_for_target()

    def close(self) -> None:
        """Look no more: training is over, and the store may go."""
        with self._lock:
            if self._others is not None and not self._closed:
                self._others.close(self._next_boundary if self._target is None else self._target)
            self._closed = True

    def _pledge_if_asked(self) -> None:
        reason = self._requested
        if reason is None and self._others is not None:
            reason = self._others.asked()
        if reason is not None:
            self._store.set("stop/reason", reason)
        elif not self._store.check(["stop/reason"]):
            return
        self._pledge = self._next_boundary
        self._store.set(self._pledge_keys[self._rank], str(self._pledge))

    def _look_for_target(self) -> None:
        if not self._store.check(self._pledge_keys if self._rank == 0 else [_TARGET]):
            return
        self.reason = self._store.get("stop/reason").decode()
        if self._rank != 0:
            self._target = int(self._store.get(_TARGET))
            return
        earliest = max(int(self._store.get(key)) for key in self._pledge_keys)
        target = earliest if self._others is None else self._others.pledge(earliest, self.reason)
        if target is not None:
            self._announce(target)

    def _announce(self, target: int) -> None:
        self._store.set(_TARGET, str(target))
        self._target = target

    def reached(self, boundary: int) -> bool:
        """Say whether to stop at ``boundary``, the number of updates made so far.

        Raises TimeoutError when a peer has not pledged within the patience.
        """
        if self._requested is not None and self._pledge is None:
            self._next_boundary = boundary
            self.poll()
        with self._lock:
            if self._pledge is None:
                self._next_boundary = boundary + 1
                return False
        if boundary < self._pledge:
            return False
        self._await_target()
        assert self._target is not None  # _await_target returns only once it is known
        if boundary < self._target:
            self._look_again(boundary)
        return boundary >= self._target

    def _look_again(self, boundary: int) -> None:
        """See whether the others have put the stop forward, on the way to it.

        The next boundary is the earliest that all workers can still hear of: none ends the step before it
        without worker 0, which has announced it by then.
        """
        with self._lock:
            assert self._target is not None
            if self._rank != 0:
                self._target = int(self._store.get(_TARGET))
            elif self._others is not None:
                earliest = self._others.pledge(boundary, self.reason)
                if earliest is not None and max(earliest, boundary + 1) < self._target:
                    self._announce(max(earliest, boundary + 1))

    def agreed_at(self, boundary: int) -> bool:
        """Say whether all are known to stop at ``boundary`` or before; never waits."""
        target = self._target
        return target is not None and target <= boundary

    def _await_target(self) -> None:
        deadline = time.monotonic() + self._patience_s
        while self._target is None:
            self.poll()
            if self._target is None:
                silent = [r for r, key in enumerate(self._pledge_keys) if not self._store.check([key])]
                # Once all have pledged, worker 0 waits for the others, who see to it that this ends.
                if silent and time.monotonic() > deadline:
                    raise TimeoutError(f"ranks {silent} have not answered the request to stop")
                self._pause(0.002)
