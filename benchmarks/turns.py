"""Turns: of several training jobs that are alive and warm, only one computes at any time.

Every worker calls ``Turn.step_begins`` at the beginning of each step. There it reports a finished turn and
waits, outside any collective, until the stage gives its job the next one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ADDRESS = "BENCHMARK_TURNS"
START_S = 180.0
TURN_S = 120.0


class Turn:
    """A worker's side. Without a stage (``BENCHMARK_TURNS`` unset) it lets every step pass."""

    def __init__(self) -> None:
        self._lines: Any = None
        address = os.environ.get(ADDRESS)
        if address is not None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(address)
                self._lines = connection.makefile("rw")
        self._left = 0
        self._start = time.perf_counter()

    def step_begins(self) -> None:
        """Count a step; at the end of a turn report its seconds and wait for the next."""
        if self._lines is None:
            return
        if self._left == 0:
            seconds = time.perf_counter() - self._start
            print(json.dumps({"pid": os.getpid(), "seconds": seconds}), file=self._lines, flush=True)
            self._left = int(self._lines.readline() or 0)
            if self._left == 0:
                os._exit(0)
            self._start = time.perf_counter()
        self._left -= 1


@dataclass(frozen=True)
class Contestant:
    """A training job: its command starts all its workers, each of which takes part in the turns."""

    name: str
    command: Sequence[str]
    workers: int = 2


class Job:
    """A contestant that is running."""

    def __init__(self, contestant: Contestant, folder: Path, environment: Mapping[str, str]) -> None:
        self.contestant = contestant
        self.log = folder / f"{contestant.name}.log"
        address = folder / f"{contestant.name}.socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen()
        self._workers: list[Any] = []
        self.pids: list[int] = []
        self.started = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                contestant.command,
                env={**environment, ADDRESS: str(address)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until every worker stands at the beginning of its first step."""
        deadline = time.monotonic() + START_S
        self._listener.settimeout(0.2)
        while len(self._workers) < self.contestant.workers:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.contestant.name} did not start; see {self.log}:\n{self._tail()}")
            with suppress(TimeoutError):
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(TURN_S)
                    self._workers.append(connection.makefile("rw"))
        self.pids = [report["pid"] for report in self._reports()]

    def processes(self) -> list[int]:
        """Return the ids of all its processes: workers, servers, launchers, and whatever they started."""
        return [self._process.pid, *(p.pid for p in psutil.Process(self._process.pid).children(True))]

    def turn(self, steps: int) -> float:
        """Let the job make ``steps`` steps; return the seconds of the worker that took longest."""
        self._tell(steps)
        return float(max(report["seconds"] for report in self._reports()))

    def end(self) -> None:
        """Send the workers home, and make sure that nothing of the job is left."""
        with suppress(OSError):
            self._tell(0)
        for worker in self._workers:
            with suppress(OSError):  # what was not sent to a worker that has gone
                worker.close()
        self._listener.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _tell(self, steps: int) -> None:
        for worker in self._workers:
            print(steps, file=worker, flush=True)

    def _reports(self) -> list[dict[str, Any]]:
        lines = [worker.readline() for worker in self._workers]
        if not all(lines):
            raise RuntimeError(f"{self.contestant.name} ended; see {self.log}:\n{self._tail()}")
        return [json.loads(line) for line in lines]

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


class Stage:
    """All contestants at once, each waiting for its turn."""

    def __init__(
        self, contestants: Sequence[Contestant], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.jobs: list[Job] = []
        self._contestants = contestants
        self._folder = folder
        self._environment = environment

    def __enter__(self) -> Self:
        try:
            for contestant in self._contestants:
                self.jobs.append(Job(contestant, self._folder, self._environment))
            for job in self.jobs:
                job.wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def rounds(self, number: int, steps: int, warmup: int) -> dict[str, list[float]]:
        """Let everybody make ``steps`` steps in turn, ``number`` times; return each one's seconds per step.

        Whoever begins changes from round to round. ``warmup`` steps come first and do not count.
        """
        seconds: dict[str, list[float]] = {job.contestant.name: [] for job in self.jobs}
        if warmup:
            for job in self.jobs:
                job.turn(warmup)
        for turn in range(number):
            first = turn % len(self.jobs)
            for job in self.jobs[first:] + self.jobs[:first]:
                seconds[job.contestant.name].append(job.turn(steps) / steps)
        return seconds

    def _end(self) -> None:
        for job in self.jobs:
            job.end()
