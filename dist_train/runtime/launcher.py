"""The launcher: starts the local workers, passes signals on, finds who failed or hangs, and starts again."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dist_train.config import schema
from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED, TrainingError
from dist_train.layout import CRASH, LOGS
from dist_train.rules import recovery
from dist_train.rules.liveness import Beat, Hung, Limits, Watch
from dist_train.rules.recovery import Attempt, Failure, Stop, after_failure, culprit
from dist_train.runtime import children, run_dir
from dist_train.runtime.children import Child
from dist_train.runtime.pulse import TICK_S, PulseReader

POLL_S = 0.25
# After a failure: what the others get to report theirs, before they are killed.
LAST_WORDS_S = 2.0
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Say = Callable[[str], None]
OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What to launch: ``argv`` is a worker's complete command, ``environment`` is added to this process's.

    ``first_step_of`` returns the step of the newest checkpoint, 0 without one. ``patient``: a second order to
    stop kills nobody, because whoever started this process sees to that, and signals may reach both.
    """

    argv: list[str]
    workers: int
    run_dir: Path
    recovery: schema.Recovery
    first_step_of: Callable[[], int]
    environment: dict[str, str] = field(default_factory=dict)
    patient: bool = False


def launch(job: Job, say: Say, on_event: OnEvent) -> int:
    """Run the workers until they are done, and return the exit status (see ``errors``).

    ``say`` gets the lines for a person, ``on_event`` the same facts for events.jsonl. The first SIGTERM,
    SIGINT, SIGUSR1 or SIGUSR2 asks the workers to save and stop (SIGINT reaches them as SIGTERM), a second
    SIGTERM or SIGINT kills them. No worker outlives this call, nor this process. Raises TrainingError if
    a worker cannot be started.
    """
    for folder in (LOGS, CRASH):
        (job.run_dir / folder).mkdir(parents=True, exist_ok=True)
    children.set_aside_crashes(job.run_dir, 0)
    limits = recovery.Limits(job.recovery.max_restarts, job.recovery.backoff_s, job.recovery.max_backoff_s)
    attempts: list[Attempt] = []
    with Signals() as signals:
        while True:
            started_from = job.first_step_of()
            ended = _Group(job, len(attempts), signals, say, on_event).run()
            if isinstance(ended, int):
                return ended
            attempts.append(Attempt(started_from, ended))
            decision = after_failure(attempts, limits)
            if isinstance(decision, Stop):
                say(decision.reason)
                on_event({"event": "gave_up", "reason": decision.reason})
                return FAILED
            children.set_aside_crashes(job.run_dir, len(attempts) - 1)
            step, number = job.first_step_of(), len(attempts)
            on_event({"event": "restart", "attempt": number, "reason": ended.error, "from_step": step})
            say(f"restarting from step {step} in {decision.delay_s:.1f} s (attempt {number + 1})")
            if signals.stop_within(decision.delay_s):
                say("interrupted between two attempts: resume the run to continue")
                return INTERRUPTED


class Signals:
    """Turns signals into a queue: nothing happens inside a handler, and waiting ends when one arrives.

    SIGCHLD is among them, so that a worker's end is noticed at once.
    """

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before: dict[int, Any] = {}
        # Only a main thread may handle signals; elsewhere (a notebook) the workers are merely polled.
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            for number in (*FORWARDED, signal.SIGCHLD):
                # nohup has a hang-up ignored, and it should stay so.
                if signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, lambda number, frame: None)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def wait(self, seconds: float) -> list[signal.Signals]:
        """Wait for a signal, at most ``seconds``; return those to pass on, in the order of their arrival."""
        ready, _, _ = select.select([self._reader], [], [], seconds)
        received = self._reader.recv(4096) if ready else b""
        return [signal.Signals(number) for number in received if number in FORWARDED]

    def stop_within(self, seconds: float) -> bool:
        """Wait ``seconds``; say whether a request to stop came, which ends the wait."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self.wait(left):
                return True
        return bool(self.wait(0))


class _Group:
    """One attempt: the workers from their start to the end of the last."""

    def __init__(self, job: Job, attempt: int, signals: Signals, say: Say, on_event: OnEvent) -> None:
        self._job = job
        self._attempt = attempt
        self._signals = signals
        self._say = say
        self._on_event = on_event
        self._children: list[Child] = []
        self._ended_at: dict[int, float] = {}
        self._asked: set[signal.Signals] = set()
        self._deadline: float | None = None

    def run(self) -> int | Failure:
        """Return the exit status of the launcher, or the failure that ended the attempt."""
        with PulseReader(self._job.workers) as pulses:
            self._pulses = pulses
            try:
                self._start()
                return self._watch()
            finally:
                children.kill(self._children)
                if sys.stdout.isatty():
                    # A killed display leaves the cursor hidden.
                    print("\033[?25h", end="", flush=True)

    def _start(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
            variables = shared_variables(self._job, self._attempt, dict(os.environ))
            variables["MASTER_PORT"] = str(listener.getsockname()[1])
            variables["DIST_TRAIN_PULSE"] = self._pulses.path
            for rank in range(self._job.workers):
                own = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                descriptors = [self._pulses.fileno()]
                if rank == 0:
                    own["DIST_TRAIN_LISTEN_FD"] = str(listener.fileno())
                    descriptors.append(listener.fileno())
                log = run_dir.log_file(self._job.run_dir, rank)
                try:
                    self._children.append(children.start(self._job.argv, rank, own, log, descriptors))
                except OSError as error:
                    raise TrainingError(f"worker {rank} cannot be started: {error}") from error

    def _watch(self) -> int | Failure:
        watch = Watch(_limits(self._job.recovery), POLL_S)
        while True:
            for number in self._signals.wait(POLL_S):
                if not self._pass_on(number):
                    self._say(f"killed the workers on a second {number.name}: what was not saved is lost")
                    return FAILED
            now = time.monotonic()
            running = self._running(now)
            if any(child.status not in (None, DONE, INTERRUPTED) for child in self._children):
                return self._failed()
            if not running:
                return max(child.status or DONE for child in self._children)
            if self._deadline is not None and now > self._deadline:
                return self._out_of_grace(running)
            verdict = watch.look([self._beat(child.rank) for child in running], now)
            if isinstance(verdict, Hung):
                return self._hung(verdict)

    def _running(self, now: float) -> list[Child]:
        running = []
        for child in self._children:
            if child.status is None:
                running.append(child)
                continue
            self._ended_at.setdefault(child.rank, now)
            if child.status == INTERRUPTED and self._deadline is None:
                self._deadline = now + self._job.recovery.grace_s
        return running

    def _pass_on(self, number: signal.Signals) -> bool:
        """Pass a signal on to the workers; False if it is the second order to stop, which kills."""
        number = signal.SIGTERM if number == signal.SIGINT else number
        if number == signal.SIGTERM and number in self._asked:
            return self._job.patient
        self._asked.add(number)
        self._deadline = self._deadline or time.monotonic() + self._job.recovery.grace_s
        self._on_event({"event": "signal", "signal": number.name})
        self._say("stopping: the workers finish their step and save (a second Ctrl-C kills them)")
        for child in self._children:
            child.send(number)
        return True

    def _out_of_grace(self, running: list[Child]) -> int:
        children.dump_stacks(running)
        names = ", ".join(str(child.rank) for child in running)
        who = f"worker {names}" if len(running) == 1 else f"workers {names}"
        self._say(
            f"killed {who}: still running {self._job.recovery.grace_s:g} s (recovery.grace_s) "
            f"after the request to stop; stacks in {self._job.run_dir / LOGS}"
        )
        return FAILED

    def _failed(self) -> int | Failure:
        """A worker has failed: stop the others, and find out which failed first."""
        first = {child.rank for child in self._children if child.status is not None}
        children.stop(self._children, LAST_WORDS_S)
        self._running(time.monotonic())
        refusals = [child.rank for child in self._children if child.status == REFUSED]
        failures = [
            self._failure(child)
            for child in self._children
            if child.status not in (DONE, INTERRUPTED)
            and (child.rank in first or self._crash(child.rank) or not _was_stopped(child))
        ]
        if refusals:
            return self._refused([failure for failure in failures if failure.rank in refusals])
        failure = culprit(failures)
        if failure.kind in {number.name for number in self._asked}:
            self._say(f"interrupted before the workers could save: {self._sentence(failure)}")
            return INTERRUPTED
        return self._report(failure, self._sentence(failure))

    def _hung(self, verdict: Hung) -> int | Failure:
        """Workers do not move: write down where everybody is, then end them."""
        children.dump_stacks(self._children)
        logs = self._job.run_dir / LOGS
        self._say(f"{verdict.why}; stacks of all workers in {logs}")
        self._on_event({"event": "hung", "ranks": list(verdict.ranks), "reason": verdict.why})
        children.kill(self._children)
        crashes = [failure for child in self._children if (failure := self._crash(child.rank))]
        if crashes and not culprit(crashes).is_echo:
            # It failed, and then did not manage to end.
            failure = culprit(crashes)
            return self._report(failure, self._sentence(failure))
        beat = self._beat(verdict.ranks[0])
        return self._report(
            Failure(
                beat.rank, beat.step, beat.phase, verdict.kind, verdict.why, time.monotonic(), killed=True
            )
        )

    def _report(self, failure: Failure, sentence: str | None = None) -> int | Failure:
        if sentence is not None:
            self._say(sentence)
        self._on_event(
            {
                "event": "failure",
                "attempt": self._attempt,
                "rank": failure.rank,
                "step": failure.step,
                "phase": failure.phase,
                "error": failure.error,
            }
        )
        stopping = self._asked or any(child.status == INTERRUPTED for child in self._children)
        return FAILED if stopping else failure

    def _refused(self, refusals: list[Failure]) -> int:
        rank = culprit(refusals).rank
        crash = children.crash_of(self._job.run_dir, rank)
        message = crash[1] if crash else children.last_line(self._children[rank])
        self._say(message)
        self._on_event({"event": "refused", "rank": rank, "reason": message})
        return REFUSED

    def _failure(self, child: Child) -> Failure:
        if crash := self._crash(child.rank):
            return crash
        status = child.status or DONE
        if status < 0:
            kind = signal.Signals(-status).name
            error = f"killed by {kind}"
        else:
            kind = f"exit status {status}"
            error = f"{kind}: {children.last_line(child)}"
        beat = self._beat(child.rank)
        return Failure(
            child.rank, beat.step, beat.phase, kind, error, self._ended_at[child.rank], killed=status < 0
        )

    def _crash(self, rank: int) -> Failure | None:
        crash = children.crash_of(self._job.run_dir, rank)
        return crash[0] if crash else None

    def _beat(self, rank: int) -> Beat:
        return self._pulses.beats()[rank]

    def _sentence(self, failure: Failure) -> str:
        child = self._children[failure.rank]
        who = f"worker {failure.rank} ({socket.gethostname()}, pid {child.process.pid})"
        place = f"in step {failure.step}, phase {failure.phase}"
        if not failure.killed:
            what = f"failed {place}: {textwrap.shorten(failure.error, 400)}"
        elif failure.kind == "SIGKILL":
            what = f"was killed by SIGKILL (the kernel does so when memory runs out) {place}"
        else:
            what = f"was {failure.error} {place}"
        return f"{who} {what}; log: {child.log}"


def shared_variables(job: Job, attempt: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that all workers share, on top of what they inherit."""
    return {
        # Several workers with as many threads as cores each would be in one another's way.
        "OMP_NUM_THREADS": str(max(1, available_cpus() // job.workers)),
        "GLOO_SOCKET_IFNAME": "lo",
        # Gradients are allocated anew in every step: in large pages, malloc fetches them without faults.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        **inherited,
        **job.environment,
        "WORLD_SIZE": str(job.workers),
        "LOCAL_WORLD_SIZE": str(job.workers),
        "MASTER_ADDR": "127.0.0.1",
        "DIST_TRAIN_LAUNCHER_PID": str(os.getpid()),
        "DIST_TRAIN_ATTEMPT": str(attempt),
    }


def available_cpus(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Count the cores this process may use: those it may run on, or fewer by its container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = limit.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _limits(settings: schema.Recovery) -> Limits:
    # A limit of less than a few ticks would take every pulse for stopped.
    frozen_after_s = max(settings.frozen_after_s, 3 * TICK_S)
    return Limits(frozen_after_s, settings.hung_after_s, settings.start_timeout_s)


def _was_stopped(child: Child) -> bool:
    return child.status in (-signal.SIGTERM, -signal.SIGKILL)
