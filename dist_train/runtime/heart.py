"""The heart of an actor's process: a thread that tells the coordinator where the process is in its work."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from dist_train.runtime.letters import Pulse
from dist_train.runtime.pulse import PulseWriter
from dist_train.runtime.ray_cluster import Actor, this_process

# SIG_IGN of the C library.
_IGNORE = 1


class Heart:
    """Beats twice a second; its silence means that the process is frozen or gone."""

    def __init__(self, coordinator: Actor, kind: str, number: int, incarnation: int) -> None:
        self._coordinator = coordinator
        self._kind = kind
        self._number = number
        self._incarnation = incarnation
        self._process = this_process()
        self.pulse = PulseWriter(None)
        self.phase = self.pulse.phase
        self.pulse.every_tick(self._beat)

    def close(self) -> None:
        self.pulse.close()

    def _beat(self) -> None:
        beat = self.pulse.beat(self._number)
        age = time.monotonic() - beat.phase_since
        pulse = Pulse(replace(beat, rank=self._number), age, self._process, self._incarnation)
        self._coordinator.post("pulse", self._kind, self._number, pulse)


def leave_interrupts_to_the_conductor() -> None:
    """Ignore SIGTERM and SIGINT, which may be sent to every process of a job: who ends by them saves nothing.

    By the C library, since Python lets only a main thread do it, and Ray makes an actor in another.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    for number in (signal.SIGTERM, signal.SIGINT):
        library.signal(number, ctypes.c_void_p(_IGNORE))


def redirect_output(path: Path) -> None:
    """Append what this process prints to its log in the run's directory, from here on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    # Whoever started the process may have put other files in their place.
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
