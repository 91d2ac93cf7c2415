"""Worker processes: how the launcher starts, stops and questions them, and what a worker owes the launcher."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.errors import FAILED
from dist_train.rules.liveness import Beat
from dist_train.rules.recovery import Failure
from dist_train.runtime import run_dir

_PR_SET_PDEATHSIG = 1
_DUMP_MARK = b"(most recent call first)"


@dataclass(frozen=True)
class Child:
    """A worker that the launcher started. It leads a session and process group of its own."""

    rank: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a death by signal; None while it runs."""
        return self.process.poll()

    def send(self, number: int) -> None:
        if self.status is None:
            self.process.send_signal(number)


# The launcher's side.


def start(
    argv: Sequence[str], rank: int, variables: Mapping[str, str], log: Path, descriptors: Sequence[int]
) -> Child:
    """Start one worker in a session of its own, so that Ctrl-C reaches the launcher only.

    Its output is appended to ``log``, but rank 0 keeps the launcher's stdout: its display shows the progress.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            argv,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else file,
            stderr=file,
            pass_fds=tuple(descriptors),
            start_new_session=True,
        )
    return Child(rank, process, log)


def wait(children: Sequence[Child], until: Callable[[], bool], seconds: float) -> bool:
    """Poll ``until``, for at most ``seconds``; say whether it came true."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
