"""All workers stop at the same step boundary, without a collective in every step.

A worker that is told to stop may not leave at once: its peers would wait for it inside the next
all-reduce. Each worker therefore pledges the earliest boundary at which it can stop, and all of them stop
at the latest pledge. The pledge of a worker that is busy inside a step is made by its pulse thread, so a
worker that waits at its own pledge never waits for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class KeyValueStore(Protocol):
    """What an agreement needs of a torch.distributed store; its in-process twin is ``HashStore``."""

    def set(self, key: str, value: str, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...


class StopAgreement:
    """One worker's side of the agreement.

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
    ) -> None:
        self._store = store
        self._rank = rank
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
            if self._pledge is not None and self._store.check(self._pledge_keys):
                self._target = max(int(self._store.get(key)) for key in self._pledge_keys)
                self.reason = self._store.get("stop/reason").decode()

    def close(self) -> None:
        """Look no more: training is over, and the store may go."""
        with self._lock:
            self._closed = True

    def _pledge_if_asked(self) -> None:
        if self._requested is not None:
            self._store.set("stop/reason", self._requested)
        elif not self._store.check(["stop/reason"]):
            return
        self._pledge = self._next_boundary
        self._store.set(self._pledge_keys[self._rank], str(self._pledge))

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
        return boundary >= self._target

    def agreed_at(self, boundary: int) -> bool:
        """Say whether all are known to stop at ``boundary`` or before; never waits."""
        target = self._target
        return target is not None and target <= boundary

    def _await_target(self) -> None:
        deadline = time.monotonic() + self._patience_s
        while self._target is None:
            self.poll()
            if self._target is None:
                if time.monotonic() > deadline:
                    silent = [r for r, key in enumerate(self._pledge_keys) if not self._store.check([key])]
                    raise TimeoutError(f"ranks {silent} have not answered the request to stop")
                self._pause(0.002)
