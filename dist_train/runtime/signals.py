"""Requests to stop, from the first instruction of a worker on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from dist_train.errors import FAILED

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """Turns SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 into a request to save and stop at the next step.

    The handler only passes the request on; saving is the training loop's work. A second SIGINT ends the
    process at once.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._request: Callable[[str], None] | None = None
        for number in STOPPING:
            # nohup has a hang-up ignored, and it should stay so.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def connect(self, request: Callable[[str], None]) -> None:
        """Pass requests to ``request``, one that came before included."""
        self._request = request
        if self._reason is not None:
            request(self._reason)

    def _handle(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and self._reason == name:
            print("second SIGINT: stopping at once, without saving", file=sys.stderr, flush=True)
            os._exit(FAILED)
        self._reason = name
        if self._request is not None:
            self._request(name)
