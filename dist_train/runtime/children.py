"""Worker processes: how the launcher starts, questions and ends them, and what a worker owes its launcher."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dist_train.errors import FAILED
from dist_train.layout import CRASH
from dist_train.rules.recovery import Failure
from dist_train.runtime import run_dir

_PR_SET_PDEATHSIG = 1
_STACK = b"(most recent call first)"


@dataclass(frozen=True)
class Child:
    """A worker as its launcher sees it: the leader of a session and process group of its own.

    ``log_start``: where in its log this attempt's lines begin, after those of earlier ones.
    """

    rank: int
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int

    @property
    def status(self) -> int | None:
        """The exit status, minus the signal's number after a death by signal, None while it runs."""
        return self.process.poll()

    def send(self, number: int) -> None:
        """Send a signal to the worker itself, not to the processes it started."""
        if self.status is None:
            self.process.send_signal(number)


def start(
    argv: Sequence[str], rank: int, variables: Mapping[str, str], log: Path, descriptors: Sequence[int]
) -> Child:
    """Start one worker in its own session, so that Ctrl-C reaches the launcher only.

    Its output is appended to ``log``, except that rank 0 shares the launcher's stdout, where its display is.
    """
    with log.open("ab") as file:
        log_start = file.tell()
        process = subprocess.Popen(
            argv,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else file,
            stderr=file,
            pass_fds=tuple(descriptors),
            start_new_session=True,
        )
    return Child(rank, process, log, log_start)


def stop(children: Sequence[Child], grace_s: float) -> None:
    """Ask with SIGTERM, wait at most ``grace_s``, then kill: a worker in a collective cannot hear."""
    for child in children:
        child.send(signal.SIGTERM)
    _wait_until(lambda: all(child.status is not None for child in children), grace_s)
    kill(children)


def kill(children: Sequence[Child]) -> None:
    """Kill the workers and every process that they started, and wait until the workers are gone."""
    for child in children:
        # The group outlives its leader for as long as one of its processes (a data loader, say) runs.
        with suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(timeout=10)


def dump_stacks(children: Sequence[Child], wait_s: float = 2.0) -> None:
    """Have all workers, stopped ones too, write their stacks to their logs; return when they have."""
    running = [child for child in children if child.status is None]
    before = {child.rank: child.log.stat().st_size for child in running}
    for number in (signal.SIGQUIT, signal.SIGCONT):
        for child in running:
            child.send(number)
    last: dict[int, bytes] = {}

    def complete() -> bool:
        nonlocal last
        earlier, last = last, {child.rank: _tail(child.log, before[child.rank]) for child in running}
        return last == earlier and all(
            _STACK in last[child.rank] or child.status is not None for child in running
        )

    _wait_until(complete, wait_s)


def last_line(child: Child) -> str:
    """Return the last line that the worker wrote to its log, for want of a proper report."""
    lines = _tail(child.log, child.log_start).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing in its log"


def _tail(log: Path, start: int) -> bytes:
    with log.open("rb") as file:
        file.seek(start)
        return file.read()


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def die_with_launcher(launcher_pid: int) -> None:
    """In a worker, first thing: have the kernel kill this process when its launcher dies, however it dies.

    Ends the process at once (status 1) when the launcher is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher_pid:
        print(f"the launcher (process {launcher_pid}) is gone: nothing to do", file=sys.stderr, flush=True)
        os._exit(FAILED)


def dump_stacks_on_request() -> None:
    """In a worker: write all threads' stacks to stderr on SIGQUIT, and on a crash in native code."""
    faulthandler.enable()
    # A copy: whatever becomes of stderr later, the stacks go where it leads now.
    faulthandler.register(signal.SIGQUIT, file=os.dup(2), all_threads=True)


def report_crash(run: Path, rank: int, phase: str, step: int, exception: BaseException) -> None:
    """In a worker that fails: leave the error where the launcher looks for it."""
    kind, text = type(exception).__name__, str(exception)
    report = {
        "error": f"{kind}: {text}" if text else kind,
        "kind": kind,
        "message": text or kind,
        "phase": phase,
        "step": step,
        "time": time.monotonic(),
        "traceback": "".join(traceback.format_exception(exception)),
    }
    # Where a full disk is the failure, the log has to do.
    with suppress(OSError):
        run_dir.write_atomically(run_dir.crash_file(run, rank), json.dumps(report, indent=2) + "\n")


def crash_of(run: Path, rank: int) -> tuple[Failure, str] | None:
    """Read the failure that a worker reported, with its whole message; None if it reported nothing."""
    try:
        report = json.loads(run_dir.crash_file(run, rank).read_text())
    except (OSError, ValueError):
        return None
    error = " ".join(report["error"].split())
    failure = Failure(rank, report["step"], report["phase"], report["kind"], error, report["time"])
    return failure, report["message"]


def set_aside_crashes(run: Path, attempt: int) -> None:
    """Rename the crash reports so that the next attempt starts with none, and none is lost."""
    folder = run / CRASH
    while any(folder.glob(f"rank_*.attempt_{attempt}.json")):
        attempt += 1
    for report in sorted(folder.glob("rank_*.json")):
        if ".attempt_" not in report.name:
            report.rename(report.with_name(f"{report.stem}.attempt_{attempt}.json"))
